"""Data sets that list samples: photos and layouts, and counts of their tokens."""
