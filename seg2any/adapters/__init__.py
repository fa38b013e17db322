"""LoRA adapters: routing to token rows, files, the adapter card, and folding."""
