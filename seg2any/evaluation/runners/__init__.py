"""Runners: measure a folder of a benchmark's images, and write numbers, pictures and a page."""
