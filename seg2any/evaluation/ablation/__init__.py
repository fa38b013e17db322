"""Which of the paper's trends hold where truth is measurable: the `shapes` world."""
