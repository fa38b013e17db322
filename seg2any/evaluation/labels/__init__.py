"""Label maps converted for the closed-set judges."""
