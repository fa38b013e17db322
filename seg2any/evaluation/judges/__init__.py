"""Networks that judge images: label maps, feature vectors, and how well an image fits a text."""
