"""The LoRA adapters: which rows they act on, their files, their card, and folding them into the weights."""
