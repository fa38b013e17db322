"""Benchmarks of segmenters that understand language, on photos and on rendered scenes."""
