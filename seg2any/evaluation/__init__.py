"""Evaluation: the images of a benchmark, judges and metrics that measure them, and reports."""
