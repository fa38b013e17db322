"""Data sets that test layouts: crowded boxes, the order of regions that overlap, and colours drawn by lot."""
