"""Checks of the recorded behaviour of X-SAM: a module for each recorded file, with `FILE` and `CHECKS`."""
