"""What `infer.py` is made of: options, pre-flight of files, the plan of images, recipes, and the run."""
