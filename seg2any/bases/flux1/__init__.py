"""FLUX.1: the only place that knows its networks and what they are called."""
