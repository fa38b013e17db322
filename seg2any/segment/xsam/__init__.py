"""X-SAM (arXiv 2508.04655): a language model that answers with text and masks, built from the parts of transformers."""
