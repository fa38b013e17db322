"""Run FLUX.1; no code outside this folder names its networks."""
