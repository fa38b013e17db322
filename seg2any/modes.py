"""Names of what generation can be told to save memory and time; what they mean is said where they are used."""

MEMORY_MODES = ("full", "offload", "group_offload", "int8", "nf4", "fp8")  # seg2any.memory
QUANTISED = ("int8", "nf4", "fp8")  # those of them that change the image
STEP_CACHES = ("none", "first_block", "mag", "taylorseer")  # seg2any.step_cache
