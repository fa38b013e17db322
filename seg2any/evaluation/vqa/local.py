"""A vision-language model of the Qwen-VL family in this process as a judge."""

from __future__ import annotations

import torch

from seg2any.evaluation.vqa.questions import LONGEST_TEXT, Question
from seg2any.evaluation.vqa.replies import read_attributes, share_of_yes
from seg2any.system.chat_model import ChatModel

WHAT = "local judge of region questions"
SOURCE = "Qwen/Qwen3-VL-8B-Instruct"


class LocalJudge:
    """A model that answers with the probabilities of the first token.

    `name` is a folder or a hub id. Raises UserError if it is missing or has no chat template with images.
    """

    def __init__(self, name: str = SOURCE, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
        self.chat = ChatModel(name, WHAT, SOURCE, device, dtype)
        self.name = self.chat.name

    def answer(self, question: Question) -> dict:
        """Answer as `Judge` says. Raises NoAnswer."""
        if question.wants == "attributes":
            text, *_ = self.chat.reply(question.text, question.images, LONGEST_TEXT)
            return read_attributes(text, question.caption)
        return share_of_yes(self.chat.first_words(question.text, question.images))
