"""Metrics: from images and what they should show to numbers that can be resampled."""
