"""Stable Diffusion 3 and 3.5, as far as the attention probe needs them."""
