"""Load flow models and call them through one protocol, `Base`."""
