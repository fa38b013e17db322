"""List the memory modes, and which can train; nothing is imported, so that --help is quick.

mode           weights on the device at a time                            by
full           all of them                                                -
offload        one network: text encoders, transformer and VAE in turn    diffusers, model offload
group_offload  one layer, the next on its way                             diffusers, group offload
int8, nf4      the transformer in 8 or 4 bits; networks in turn           bitsandbytes and model offload
fp8            the transformer's layers stored in 8 bits and computed in  diffusers, layerwise casting and model offload
               the model's precision; networks in turn on a GPU

Adapters stay in the model's precision. All modes but `full` also decode image by image and, above the size that the VAE
was trained at, in tiles.
"""

MEMORY_MODES = ("full", "offload", "group_offload", "int8", "nf4", "fp8")
QUANTISED = ("int8", "nf4", "fp8")  # these change the image
BITSANDBYTES = ("int8", "nf4")  # quantised while the weights are loaded
SMALLER = {"full": "offload", "offload": "nf4", "int8": "nf4", "fp8": "nf4", "nf4": "group_offload"}
# In training: the value of trainer.base_quantization, or why the mode cannot train.
IN_TRAINING = {"full": "none", "int8": "8bit", "nf4": "nf4"}
NOT_IN_TRAINING = {
    "offload": "a step needs the transformer throughout; trainer.cache_text and cache_latents spare the others",
    "group_offload": "the backward pass needs the layers that would have been moved away",
    "fp8": "the backward pass keeps the unpacked weights, so nothing is saved",
}
