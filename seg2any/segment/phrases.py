"""Join phrases to prompts that a text encoder reads at once, and find the tokens of each phrase."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from seg2any.system.errors import UserError, shown


@dataclass(frozen=True)
class Chunk:
    """Phrases that the text encoder reads together.

    prompt   the text that it reads
    phrases  numbers of the phrases among all that were asked for
    columns  the text tokens of each of these phrases
    """

    prompt: str
    phrases: tuple[int, ...]
    columns: tuple[tuple[int, ...], ...]


def chunks_of(phrases: Sequence[str], tokenizer: object, most: int) -> list[Chunk]:
    """Join phrases by spaces to prompts of at most `most` tokens, of about equal length.

    The phrases are sorted first, so that the answer does not depend on their order.

    Raises UserError for a phrase that is too long or given twice, and for a tokenizer without offsets.
    """
    if not tokenizer.is_fast:
        raise UserError("phrases: the model's tokenizer does not say where its tokens lie; load a fast tokenizer")
    order = sorted(range(len(phrases)), key=lambda number: phrases[number])
    for one, next_one in zip(order, order[1:], strict=False):
        if phrases[one] == phrases[next_one]:
            raise UserError(f"phrase {shown(phrases[one])}: is given twice; leave one of them out")
    lengths = _lengths(phrases, tokenizer)
    for phrase, length in zip(phrases, lengths, strict=True):
        if length > most - 1:
            raise UserError(f"phrase {shown(phrase)}: has {length} tokens, and {most - 1} are read; shorten it")
    n_chunks = math.ceil(sum(lengths) / (most - 1))
    room = max(max(lengths), math.ceil(sum(lengths) / n_chunks))
    groups, used = [[]], 0
    for number in order:
        if used + lengths[number] > room:
            groups.append([])
            used = 0
        groups[-1].append(number)
        used += lengths[number]
    return [_chunk(group, phrases, tokenizer) for group in groups]


def prompt_tokens(phrases: Sequence[str], tokenizer: object) -> int:
    """Count the tokens of the prompt that phrases make together, with its end."""
    return sum(_lengths(phrases, tokenizer)) + 1


def columns_in(prompt: str, phrases: Sequence[str], tokenizer: object) -> tuple[tuple[int, ...], ...] | None:
    """Find the tokens of phrases that occur in a text, each behind the one before; None if one does not.

    Raises UserError for a phrase without a token.
    """
    spans, behind = [], 0
    for phrase in phrases:
        start = prompt.find(phrase, behind)
        if start < 0:
            return None
        behind = start + len(phrase)
        spans.append((start, behind))
    offsets = tokenizer(prompt, return_offsets_mapping=True, verbose=False).offset_mapping
    columns = [
        tuple(place for place, (first, last) in enumerate(offsets) if max(first, start) < min(last, stop))
        for start, stop in spans
    ]
    if () in columns:
        raise UserError(f"phrase {shown(phrases[columns.index(())])}: has no token; write it in other words")
    return tuple(columns)


def _lengths(phrases: Sequence[str], tokenizer: object) -> list[int]:
    """Count the tokens of each phrase, without the end's token."""
    return [len(tokenizer(phrase, verbose=False).input_ids) - 1 for phrase in phrases]


def _chunk(group: Sequence[int], phrases: Sequence[str], tokenizer: object) -> Chunk:
    own = [phrases[number] for number in group]
    prompt = " ".join(own)
    return Chunk(prompt, tuple(group), columns_in(prompt, own, tokenizer))
