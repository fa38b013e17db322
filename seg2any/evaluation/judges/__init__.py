"""Networks that judge images: label maps, feature vectors, and how well images fit texts."""
