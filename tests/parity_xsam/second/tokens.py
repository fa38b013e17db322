"""A tokenizer like Phi-3's, as a file and as a plain function: pairs with bytes for what has no letter.

Role markers swallow white space behind them; every piece of text between markers gets a leading space mark.
"""

from __future__ import annotations

import re
from collections import Counter

ROLES = ("<|end|>", "<|user|>", "<|spare|>", "<|assistant|>", "<|system|>")
OWN = ("<SEG>", "<p>", "</p>")
SPACE = "▁"


class Vocabulary:
    """Numbers of all tokens; made from texts that some pairs are learned from."""

    def __init__(self, texts: list[str], merges: int):
        words = Counter(SPACE + word for text in texts for word in text.split())
        letters = sorted({letter for word in words for letter in word})
        pieces = {word: list(word) for word in words}
        self.merges: list[tuple[str, str]] = []
        for _ in range(merges):
            pairs = Counter()
            for word, count in words.items():
                for pair in zip(pieces[word], pieces[word][1:], strict=False):
                    pairs[pair] += count
            best = max(pairs, key=lambda pair: (pairs[pair], pair))
            self.merges.append(best)
            for word in words:
                pieces[word] = joined(pieces[word], best)
        names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
        names += [name for name in dict.fromkeys(a + b for a, b in self.merges) if name not in names]
        self.names = [*names, ROLES[1], "<|endoftext|>", ROLES[0], *ROLES[2:]]
        self.base = len(self.names)
        self.names += OWN
        self.ids = {name: number for number, name in enumerate(self.names)}
        self.learned = len(names)

    def encode(self, text: str) -> list[int]:
        """Encode a text by itself, without a beginning mark."""
        marks = sorted([*self.names[self.learned :], "<unk>", "<s>", "</s>"], key=len, reverse=True)
        found, swallowed = [], False
        for piece in re.split("(" + "|".join(map(re.escape, marks)) + ")", text):
            if piece in marks:
                found.append(self.ids[piece])
                swallowed = piece in ROLES or piece == "</s>"
            elif piece:
                left = piece.lstrip() if swallowed else piece
                found += self._pairs(left) if left else []
                swallowed = False
        return found

    def _pairs(self, piece: str) -> list[int]:
        letters = list(SPACE + piece.replace(" ", SPACE))
        ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        while True:
            pairs = [pair for pair in zip(letters, letters[1:], strict=False) if pair in ranks]
            if not pairs:
                break
            letters = joined(letters, min(pairs, key=ranks.__getitem__))
        found = []
        for one in letters:
            known = one in self.ids
            found += [self.ids[one]] if known else [self.ids[f"<0x{byte:02X}>"] for byte in one.encode()]
        return found

    def decode(self, ids: list[int]) -> str:
        """Write tokens other than bytes as text."""
        return "".join(self.names[one] for one in ids).replace(SPACE, " ").removeprefix(" ")

    def file(self) -> dict:
        """Describe the tokenizer as tokenizer.json does, without the tokens that X-SAM adds."""
        added = [0, 1, 2, *range(self.learned, self.base)]
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": one,
                    "content": self.names[one],
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": self.names[one] in (*ROLES, "</s>"),
                    "normalized": False,
                    "special": True,
                }
                for one in added
            ],
            "normalizer": {
                "type": "Sequence",
                "normalizers": [
                    {"type": "Prepend", "prepend": SPACE},
                    {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
                ],
            },
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
                ],
            },
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": "<unk>",
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": {name: number for name, number in self.ids.items() if number < self.learned},
                "merges": [list(pair) for pair in self.merges],
            },
        }


def joined(letters: list[str], pair: tuple[str, str]) -> list[str]:
    """Join each occurrence of a pair, from the left."""
    found, place = [], 0
    while place < len(letters):
        if tuple(letters[place : place + 2]) == pair:
            found.append(letters[place] + letters[place + 1])
            place += 2
        else:
            found.append(letters[place])
            place += 1
    return found
