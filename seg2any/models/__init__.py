"""The transformer with a condition stream, and its adapters."""
