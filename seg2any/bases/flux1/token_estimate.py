"""Estimate the tokens of captions for FLUX.1 without its files.

T5's tokenizer cuts English words into pieces: short ones stay whole, longer ones fall apart the more often the longer
they are, capitals cost a piece more often than not, and so do most signs. The weights below come from T5's own counts.
On 216 English captions of images, 25 tokens long on average, the rule is off by 9 % on average and by less than 30 % in
19 of 20; on the 332 names of the classes of ADE20K and COCO-Stuff, 4.4 tokens long, by 0.6 of a token.
"""

from __future__ import annotations

import re
import unicodedata

PIXELS_PER_TOKEN = 16  # of FLUX.1: a VAE of factor 8, patches of 2 x 2
PIECES = (1.6, 0.8, 0.8, 0.95, 1.15, 1.25, 1.25, 1.35, 1.4, 1.4, 1.6, 1.8)  # tokens of a word by its number of letters
CAPITAL = 0.6  # more for a word that begins with a capital
SHOUTED = 0.5  # tokens of each letter of a word in capitals
DIGIT, SIGN, HYPHEN = 0.5, 1.1, 0.6
UNKNOWN = 1.5  # a run of unknown characters, which may begin a word
PARTS = re.compile(r"[^\W\d_]+|\d+|[^\w\s]|_")
# Besides ASCII. Capitals that are missing here, such as those of Cyrillic, are unknown to T5, too.
LETTERS = frozenset("£«®°»ÉÎÜßàáâäçèéêîóôöùûüăşţșțавдеиклмнорсту–—‘’“”„•€")
NOT_ASCII = frozenset("<\\^`{}~")


def count_tokens(caption: str) -> int:
    """Estimate the number of tokens of a caption, with its end token."""
    unknown, known = unknown_parts(caption), unicodedata.normalize("NFKC", caption)
    for part in unknown:
        known = known.replace(part, " ", 1)
    total = sum(map(_pieces, PARTS.findall(known))) + UNKNOWN * len(unknown)
    return max(1, round(total)) + 1 if caption.strip() else 1


def unknown_parts(caption: str) -> tuple[str, ...]:
    """List the runs of characters that T5 has no token for; each becomes one unknown token.

    Characters count after normalisation, which turns a full-width A into an A.
    """
    runs, last = [], False
    for character in unicodedata.normalize("NFKC", caption):
        unknown = not character.isspace() and not _is_known(character)
        if unknown and last:
            runs[-1] += character
        elif unknown:
            runs.append(character)
        last = unknown
    return tuple(runs)


def _is_known(character: str) -> bool:
    return character in LETTERS or (character.isascii() and character not in NOT_ASCII)


def _pieces(text: str) -> float:
    """Estimate the tokens of a word, a number or a sign."""
    length = len(text)
    if text[0].isdigit():
        return DIGIT * (1 + length)
    if not text[0].isalpha():
        return HYPHEN if text == "-" else SIGN
    if length > 1 and text.isupper():
        return 1 + SHOUTED * length
    capital = CAPITAL if length > 1 and text[0].isupper() else 0.0
    return PIECES[min(length, len(PIECES)) - 1] + capital
