"""Find the name that was probably meant by another one: a common synonym, or a neighbour in spelling."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

CLOSE = 0.6  # least similarity of names, as difflib measures it

# Words of other programs -> names here, the likelier first; of flags as well as of keys, so not all exist everywhere.
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("lr", "rate", "learn_rate"), ("learning_rate",)),
    **dict.fromkeys(("steps", "max_steps", "n_steps", "num_steps"), ("max_train_steps", "num_inference_steps")),
    **dict.fromkeys(("train_steps", "iterations", "iters", "max_iter"), ("max_train_steps", "num_inference_steps")),
    **dict.fromkeys(("sampling_steps", "inference_steps", "denoising_steps"), ("num_inference_steps",)),
    **dict.fromkeys(("batch", "batchsize", "bs", "batch_size"), ("batch_size", "train_batch_size")),
    **dict.fromkeys(("epochs", "n_epochs", "num_epochs", "max_epochs"), ("num_train_epochs",)),
    **dict.fromkeys(("precision", "dtype", "torch_dtype"), ("mixed_precision", "weight_dtype")),
    **dict.fromkeys(("fp16", "bf16", "fp32", "half"), ("mixed_precision", "weight_dtype")),
    **dict.fromkeys(("grad_accum", "accumulation"), ("gradient_accumulation_steps",)),
    **dict.fromkeys(("warmup", "warmup_steps"), ("lr_warmup_steps",)),
    **dict.fromkeys(("weight_decay", "wd"), ("adam_weight_decay",)),
    **dict.fromkeys(("grad_clip", "clip", "clip_grad", "max_norm"), ("max_grad_norm",)),
    **dict.fromkeys(("save_steps", "save_every", "checkpoint_every"), ("checkpointing_steps",)),
    **dict.fromkeys(("alpha", "network_alpha"), ("lora_alpha",)),
    **dict.fromkeys(("lora_rank", "network_dim", "dim", "r"), ("rank",)),
    **dict.fromkeys(("resume", "resume_from"), ("resume_from_checkpoint",)),
    **dict.fromkeys(("workers", "num_workers"), ("workers", "dataloader_num_workers")),
    **dict.fromkeys(("model", "base", "base_model", "model_path", "ckpt"), ("model", "pretrained_model_name_or_path")),
    **dict.fromkeys(("lora", "adapter", "adapters", "lora_path", "lora_weights"), ("lora", "lora_ckpt_path")),
    **dict.fromkeys(("input", "layout", "layouts", "mask", "masks", "mask_path"), ("seg_mask_path", "masks")),
    **dict.fromkeys(("out", "output", "output_dir", "outdir", "save_path"), ("output", "output_path", "output_dir")),
    **dict.fromkeys(("cfg", "cfg_scale", "guidance"), ("guidance_scale",)),
    **dict.fromkeys(("n", "num_images", "n_images", "num_samples", "count"), ("num_images_per_prompt",)),
    **dict.fromkeys(("size", "res", "image_size"), ("resolution", "height")),
    **dict.fromkeys(("h",), ("height",)),
    **dict.fromkeys(("w",), ("width",)),
    **dict.fromkeys(("quantize", "quantization", "offload", "low_vram"), ("memory", "base_quantization")),
    **dict.fromkeys(("force", "replace"), ("overwrite",)),
    **dict.fromkeys(("gpu", "cuda"), ("device",)),
    **dict.fromkeys(("image_format", "ext", "extension"), ("format",)),
}


def probably_meant(word: str, known: Iterable[str]) -> str | None:
    """Return the one of `known` that `word` was probably meant to be, None without one.

    Capitals, and dashes for underscores, count as spelling. A synonym of names that are not here is like none of them.

    >>> probably_meant("steps", ["num_inference_steps", "seed"])
    'num_inference_steps'
    """
    names = {plain(name): name for name in known}
    asked = plain(word)
    if asked in names:
        return names[asked]
    if asked in SYNONYMS:
        return next((names[synonym] for synonym in SYNONYMS[asked] if synonym in names), None)
    begun = [name for name in names if len(asked) > 2 and name.startswith(asked)]
    close = begun if len(begun) == 1 else difflib.get_close_matches(asked, names, 1, CLOSE if len(asked) > 2 else 1)
    return names[close[0]] if close else None


def plain(word: str) -> str:
    """Return a word in small letters, with underscores for dashes."""
    return word.lower().replace("-", "_")
