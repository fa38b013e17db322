"""Names and limits of what generation can be told; what they mean is said where they are used."""

MEMORY_MODES = ("full", "offload", "group_offload", "int8", "nf4", "fp8")  # seg2any.generate.memory
QUANTISED = ("int8", "nf4", "fp8")  # those of them that change the image
PRECISIONS = ("fp32", "fp16", "bf16")  # seg2any.generate.model
STEP_CACHES = ("none", "first_block", "mag", "taylorseer")  # seg2any.diffusion.step_cache
# In training: the value of trainer.base_quantization, or why there is none.
IN_TRAINING = {"full": "none", "int8": "8bit", "nf4": "nf4"}
NOT_IN_TRAINING = {
    "offload": "a step needs the transformer throughout; trainer.cache_text and cache_latents spare the others",
    "group_offload": "the backward pass needs the layers that would have been sent away",
    "fp8": "the backward pass keeps the unpacked weights, so nothing is saved",
}
MOST_TEXT_TOKENS = 512  # of one caption: FLUX was never given more
