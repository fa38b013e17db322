"""Layouts to conditions, and noise to images: nothing here calls a network but through a base."""
