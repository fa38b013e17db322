"""Find regions by having them painted, each in a colour of its own (gen2seg, arXiv 2505.15263)."""
