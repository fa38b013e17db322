"""What a run can train; each module is one `seg2any.training.task.Task`, with its parts."""
