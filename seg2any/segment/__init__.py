"""Find regions in an image: one protocol, and the methods behind it."""
