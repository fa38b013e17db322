"""Predict the GPU memory that answering questions takes, from a configuration alone.

    weights       of the language model's layers 2, 1 or 0.56 bytes each (4 bits with a scale in fp32 for every 64); all
                  others 2 bytes
    SAM           a layer that sees the whole picture holds its relative positions for every pair of tokens and head,
                  and the attention beside them: 3 x heads x tokens^2 x 2 bytes
    question      keys and values of every layer, and the prompt in one layer: its states, and 4 times the inner width

Weights are exact up to bitsandbytes' small tables; the rest was counted in the code and not measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from seg2any.segment.xsam.config import XSamConfig
from seg2any.segment.xsam.model import FOLD, XSam

GIB = 2**30
RESERVE = GIB  # CUDA's own, and what the allocator loses to fragments
BYTES = {"16": 2.0, "8": 1.0, "4": 0.5 + 4 / 64}  # of a weight of the language model's layers
BIG_GPU = 24 * GIB
TEXT = 512 + 512  # tokens of a long question and of the longest answer


@dataclass(frozen=True)
class Predicted:
    """Bytes of the weights, of the greatest passing need, and of the keys and values."""

    weights: float
    passing: float
    memory: float

    @property
    def total(self) -> float:
        """The peak, with the reserve."""
        return self.weights + self.passing + self.memory + RESERVE


def predict(config: XSamConfig, questions: int = 1) -> dict[str, Predicted]:
    """Predict the memory with the language model's layers in 16, 8 and 4 bits, for so many questions at once."""
    with torch.device("meta"):
        model = XSam(config)
    layers = sum(module.weight.numel() for module in model.llm.model.layers.modules() if isinstance(module, nn.Linear))
    others = sum(value.numel() for value in model.parameters()) - layers
    sam, text = config.sam_config, config.text_config
    side = sam.image_size // sam.patch_size
    tokens = questions * (
        (config.siglip_config.image_size // config.siglip_config.patch_size) ** 2 + (side // FOLD) ** 2 + TEXT
    )
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * head * tokens
    seeing = 3 * 2 * sam.num_attention_heads * side**4
    reading = 2 * tokens * (4 * text.intermediate_size + text.hidden_size)
    passing = max(seeing, reading)
    return {bits: Predicted(layers * size + 2 * others, passing, cache) for bits, size in BYTES.items()}


def predicted_line(config: XSamConfig, questions: int = 1) -> str:
    """Say what each storage of the weights is predicted to take, beside 24 GB."""
    found = {bits: one.total for bits, one in predict(config, questions).items()}
    listed = ", ".join(f"{total / GIB:.1f} GiB with --bits {bits}" for bits, total in found.items())
    fitting = [bits for bits, total in found.items() if total <= BIG_GPU]
    advice = f"24 GB take --bits {fitting[0]}" if fitting else "24 GB do not suffice"
    return f"predicted GPU memory for {questions} questions at once: {listed}; {advice}"
