"""Let the language model answer token by token, keeping the states of its last layer.

Shape suffixes: B conversations, L tokens, N new tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seg2any.segment.xsam.splice import Spliced

MOST = 512  # new tokens of an answer


@dataclass(frozen=True)
class Generated:
    """An answer.

    ids     of the new tokens
    states  [L + N - 1, D] of the prompt and of each new token but the last
    """

    ids: list[int]
    states: Tensor


@torch.inference_mode()
def generate(
    llm: nn.Module, spliced: Spliced, ends: Callable[[Sequence[int]], bool], most: int = MOST
) -> list[Generated]:
    """Continue each conversation with the likeliest tokens until it ends.

    llm   a causal language model of transformers
    ends  tells from the new tokens of a conversation whether it is over; its last token counts to it
    """
    embeddings, mask = _at_the_right(spliced)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    new: list[list[int]] = [[] for _ in mask]
    going, steps, memory = set(range(len(mask))), [], None
    for _ in range(most):
        found = llm.model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=memory,
            use_cache=True,
        )
        steps.append(found.last_hidden_state)
        likeliest = llm.lm_head(steps[-1][:, -1]).argmax(-1)
        for row, token in enumerate(likeliest.tolist()):
            if row in going:
                new[row].append(token)
                if ends(new[row]):
                    going.discard(row)
        if not going:
            break
        memory, embeddings = found.past_key_values, llm.get_input_embeddings()(likeliest)[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        positions = positions[:, -1:] + 1
    lengths = spliced.mask.sum(1).tolist()
    states = torch.cat(steps, 1)
    first = spliced.mask.shape[1]
    return [
        Generated(ids, states[row, first - length : first + len(ids) - 1])
        for row, (ids, length) in enumerate(zip(new, lengths, strict=True))
    ]


def _at_the_right(spliced: Spliced) -> tuple[Tensor, Tensor]:
    """Return embeddings and mask with the filling of shorter conversations at the left."""
    longest, lengths = spliced.mask.shape[1], spliced.mask.sum(1)
    places = (torch.arange(longest, device=lengths.device) - (longest - lengths)[:, None]) % longest
    embeddings = spliced.embeddings.gather(1, places[..., None].expand_as(spliced.embeddings))
    return embeddings, spliced.mask.gather(1, places)
