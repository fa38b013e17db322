"""Runners: the images of a benchmark measured, from the folder to numbers, pictures and a page."""
