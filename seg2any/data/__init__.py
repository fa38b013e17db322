"""Data sets: each lists layouts with their images, and knows nothing of models or runs."""
