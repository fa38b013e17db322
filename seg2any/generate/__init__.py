"""Making images: the pipeline, one loaded session, folders of layouts, memory."""
