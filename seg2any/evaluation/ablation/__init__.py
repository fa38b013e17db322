"""The paper's ablations where the truth can be measured: on the `shapes` world."""
