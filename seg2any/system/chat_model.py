"""Run a vision-language model of the Qwen-VL family in this process."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil

from seg2any.system.errors import UserError
from seg2any.system.pretrained import for_inference, pretrained_model, pretrained_processor

PLACE = "<|image_pad|>"  # where the chat template puts an image
LIKELIEST = 20  # words looked at, as many as an endpoint returns


class ChatModel:
    """A model that answers texts with images, one at a time; threads wait for each other.

    name    a folder or a hub id
    what    the model's part, and `source` the hub id of a model that fits, for messages

    Raises UserError if it is missing or has no chat template with images.
    """

    def __init__(
        self,
        name: str,
        what: str,
        source: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.model = for_inference(pretrained_model(AutoModelForImageTextToText, name, what, source, dtype), device)
        self.tokenizer = pretrained_processor(AutoTokenizer, name, what, source)
        self.processor = pretrained_processor(Qwen2VLImageProcessorPil, name, what, source)
        self.device = device
        self.name = f"{name}, local, {str(dtype).removeprefix('torch.')}, greedy"
        self._lock = threading.Lock()
        if PLACE not in (self.tokenizer.chat_template or ""):
            raise UserError(f"{what}: {name} has no chat template with {PLACE}; give a model of the Qwen-VL family")

    @torch.inference_mode()
    def reply(self, text: str, images: Sequence[np.ndarray], longest: int) -> tuple[str, int, int]:
        """Answer in words, of at most `longest` tokens.

        Returns the answer, and the numbers of tokens that were read and written.
        """
        inputs = self.inputs(text, images)
        with self._lock:
            tokens = self.model.generate(**inputs, max_new_tokens=longest, do_sample=False)
        read = inputs["input_ids"].shape[1]
        answer = self.tokenizer.decode(tokens[0, read:], skip_special_tokens=True)
        return answer, read, tokens.shape[1] - read

    @torch.inference_mode()
    def first_words(self, text: str, images: Sequence[np.ndarray]) -> list[tuple[str, float]]:
        """Return the likeliest first tokens of the answer, with their probabilities."""
        inputs = self.inputs(text, images)
        with self._lock:
            logits = self.model(**inputs).logits[0, -1].float()
        likeliest = logits.softmax(-1).topk(min(LIKELIEST, len(logits)))
        words = (self.tokenizer.decode([token]) for token in likeliest.indices.tolist())
        return list(zip(words, likeliest.values.tolist(), strict=True))

    def inputs(self, text: str, images: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """Build the model's arguments from a text and images uint8 [H, W, 3], which come before it."""
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
        chat = [{"role": "user", "content": content}]
        prompt = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        inputs = {}
        if images:
            inputs = dict(self.processor(images=list(map(np.asarray, images)), return_tensors="pt"))
            counts = inputs["image_grid_thw"].prod(1) // self.processor.merge_size**2
            first, *others = prompt.split(PLACE)
            prompt = first + "".join(PLACE * int(count) + rest for count, rest in zip(counts, others, strict=True))
        inputs |= dict(self.tokenizer(prompt, return_tensors="pt", add_special_tokens=False))
        is_image = inputs["input_ids"] == self.model.config.image_token_id
        inputs["mm_token_type_ids"] = is_image.int()
        return {name: values.to(self.device) for name, values in inputs.items()}
