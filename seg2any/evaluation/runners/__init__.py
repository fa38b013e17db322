"""What the benchmarks measure, and of which images."""
