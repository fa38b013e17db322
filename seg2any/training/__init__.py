"""Training: what a run is, its data, its steps, its checkpoints."""
