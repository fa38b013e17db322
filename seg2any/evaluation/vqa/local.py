"""A vision-language model of the Qwen-VL family in this process."""

from __future__ import annotations

import threading

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil

from seg2any.evaluation.vqa.endpoint import LONGEST_TEXT
from seg2any.evaluation.vqa.questions import Question
from seg2any.evaluation.vqa.replies import read_attributes, share_of_yes
from seg2any.system.errors import UserError
from seg2any.system.pretrained import for_inference, pretrained_model, pretrained_processor

WHAT = "local judge of region questions"
SOURCE = "Qwen/Qwen2.5-VL-7B-Instruct"
PLACE = "<|image_pad|>"  # where the chat template puts an image
LIKELIEST = 20  # words looked at, as many as an endpoint returns


class LocalJudge:
    """A model that answers with the probabilities of the first token.

    `name` is a folder or a hub id. Raises UserError if it is missing or has no chat template with images.
    """

    def __init__(self, name: str = SOURCE, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
        self.model = for_inference(pretrained_model(AutoModelForImageTextToText, name, WHAT, SOURCE, dtype), device)
        self.tokenizer = pretrained_processor(AutoTokenizer, name, WHAT, SOURCE)
        self.processor = pretrained_processor(Qwen2VLImageProcessorPil, name, WHAT, SOURCE)
        self.device = device
        self.name = f"{name}, local, {str(dtype).removeprefix('torch.')}, greedy"
        self._lock = threading.Lock()
        if PLACE not in (self.tokenizer.chat_template or ""):
            raise UserError(f"{WHAT}: {name} has no chat template with {PLACE}; give a model of the Qwen-VL family")

    @torch.inference_mode()
    def answer(self, question: Question) -> dict:
        """Answer as `Judge` says. Raises NoAnswer."""
        inputs = self._inputs(question)
        with self._lock:
            if question.wants == "attributes":
                tokens = self.model.generate(**inputs, max_new_tokens=LONGEST_TEXT, do_sample=False)
                new = tokens[0, inputs["input_ids"].shape[1] :]
                return read_attributes(self.tokenizer.decode(new, skip_special_tokens=True), question.caption)
            logits = self.model(**inputs).logits[0, -1].float()
        likeliest = logits.softmax(-1).topk(min(LIKELIEST, len(logits)))
        words = (self.tokenizer.decode([token]) for token in likeliest.indices.tolist())
        return share_of_yes(zip(words, likeliest.values.tolist(), strict=True))

    def _inputs(self, question: Question) -> dict[str, torch.Tensor]:
        content = [*({"type": "image"} for _ in question.images), {"type": "text", "text": question.text}]
        chat = [{"role": "user", "content": content}]
        prompt = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        inputs = {}
        if question.images:
            inputs = dict(self.processor(images=list(map(np.asarray, question.images)), return_tensors="pt"))
            counts = inputs["image_grid_thw"].prod(1) // self.processor.merge_size**2
            first, *others = prompt.split(PLACE)
            prompt = first + "".join(PLACE * int(count) + rest for count, rest in zip(counts, others, strict=True))
        inputs |= dict(self.tokenizer(prompt, return_tensors="pt", add_special_tokens=False))
        is_image = inputs["input_ids"] == self.model.config.image_token_id
        inputs["mm_token_type_ids"] = is_image.int()
        return {name: values.to(self.device) for name, values in inputs.items()}
