"""Tasks that a run can train; `generation` is the task of Seg2Any's adapters."""
