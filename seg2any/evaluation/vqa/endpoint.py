"""A vision-language model behind an OpenAI-compatible endpoint as a judge."""

from __future__ import annotations

import json

from seg2any.evaluation.vqa.questions import LONGEST_TEXT, Question
from seg2any.evaluation.vqa.replies import read_attributes, read_yes_or_no
from seg2any.system import endpoint
from seg2any.system.patience import NoAnswer


class EndpointJudge:
    """A model behind an OpenAI-compatible endpoint, asked at temperature 0.

    A yes-or-no answer is P(yes) / (P(yes) + P(no)) of the first token where the server tells probabilities, else 1 or
    0; `by` in the answer says which. Arguments and errors are those of `Endpoint`.
    """

    def __init__(self, url: str, model: str, timeout: float = 120.0):
        self.endpoint = endpoint.Endpoint(url, model, "judge", timeout)
        self.name = f"{model}, temperature 0"

    def answer(self, question: Question) -> dict:
        """Answer as `Judge` says. Raises NoAnswer or UserError."""
        reply = self.endpoint.post(request_body(self.endpoint.model, question))
        try:
            choice = reply["choices"][0]
            text = choice["message"]["content"] or ""
            if question.wants == "attributes":
                return read_attributes(text, question.caption)
            return read_yes_or_no(text, choice.get("logprobs"))
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError):
            raise NoAnswer(f"the reply has an unknown form: {json.dumps(reply)[:200]}") from None


def request_body(model: str, question: Question) -> dict:
    """Build the JSON that is posted to /chat/completions."""
    if question.wants == "attributes":
        return endpoint.request_body(model, question.text, question.images, LONGEST_TEXT)
    body = endpoint.request_body(model, question.text, question.images, longest=1)
    return body | {"logprobs": True, "top_logprobs": 20}
