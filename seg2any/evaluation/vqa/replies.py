"""Replies of a model, read as numbers or words."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

from seg2any.evaluation.vqa.questions import ATTRIBUTES
from seg2any.system.patience import NoAnswer


def read_yes_or_no(text: str, logprobs: dict | None) -> dict:
    """Read {"yes": 0..1, "by": "probabilities" or "text"} from a reply.

    Raises NoAnswer if it is neither yes nor no.
    """
    if logprobs and logprobs.get("content"):
        likeliest = logprobs["content"][0]["top_logprobs"]
        return share_of_yes((entry["token"], math.exp(entry["logprob"])) for entry in likeliest)
    word = _word(text.split()[0]) if text.split() else ""
    if word not in ("yes", "no"):
        raise NoAnswer(f"the reply is neither yes nor no: {text[:80]!r}")
    return {"yes": float(word == "yes"), "by": "text"}


def share_of_yes(tokens: Iterable[tuple[str, float]]) -> dict:
    """Compute P(yes) / (P(yes) + P(no)) from tokens with their probabilities.

    Raises NoAnswer if neither word is among them.
    """
    sums = {"yes": 0.0, "no": 0.0}
    for token, probability in tokens:
        if (word := _word(token)) in sums:
            sums[word] += probability
    total = sum(sums.values())
    if not 0 < total < math.inf:
        raise NoAnswer("neither yes nor no is among the likeliest words")
    return {"yes": sums["yes"] / total, "by": "probabilities"}


def read_attributes(text: str, caption: str) -> dict:
    """Read attribute -> word, "" for none, from JSON somewhere in a text.

    Words that are not in the caption become "". Raises NoAnswer if there is no such JSON.
    """
    start, end = text.find("{"), text.rfind("}")
    try:
        content = json.loads(text[start : end + 1])
        words = {attribute: content[attribute] or "" for attribute in ATTRIBUTES}
    except (ValueError, KeyError, TypeError):
        raise NoAnswer(f"the reply holds no JSON of {', '.join(ATTRIBUTES)}: {text[:80]!r}") from None
    return {
        attribute: word.strip() if isinstance(word, str) and word.strip().lower() in caption.lower() else ""
        for attribute, word in words.items()
    }


def _word(token: str) -> str:
    return token.strip(" \n\t.,!\"'*Ġ▁").lower()
