"""Split captions into the tokens that metrics of captions count.

COCO's evaluation uses Stanford's Penn Treebank tokenizer, a Java program, in small letters, and drops punctuation but
brackets. The rules here give the same tokens for plain English captions. They differ in that a single letter, a title
and other abbreviations with one full stop lose it ("the letter a", "mr", where the other has "a.", "mr."), addresses of
the web and tags are split, quotation marks around one letter and signs of numbers are dropped, and archaisms ("'tis")
are not split. Languages that are written without spaces are not split at all.
"""

from __future__ import annotations

import re
import unicodedata

PUNCTUATION = r"""'`"‘’“”«».?!,:;…\-‐‑–—"""  # of a character class; dropped
CLITIC = r"'(?:s|m|re|ve|ll|d)\b"
TOKEN = re.compile(
    rf"""
    \b(?:can(?=not\b)|gon(?=na\b)|wan(?=na\b)|got(?=ta\b)|lem(?=me\b)|gim(?=me\b))  # cannot: can not
    | \w+?(?=n't\b) | n't\b                                                         # don't: do n't
    | {CLITIC}                                                                      # it's: it 's
    | '\d\ds\b                                                                      # the '90s
    | (?:[^\W\d_]\.){{2,}}                                                          # u.s.
    | \d+(?:[.,:]\d+)+                                                              # 1,000
    | \w+(?:[-/.@&]\w+|(?!{CLITIC})'[^\W\d_]\w*)*                                   # red-haired, o'clock
    | [^\w\s{PUNCTUATION}]                                                          # %
    """,
    re.VERBOSE,
)


def caption_tokens(text: str) -> list[str]:
    """Split a caption into tokens in small letters, without punctuation.

    >>> caption_tokens("A red-haired man's dogs, and 50% can't walk.")
    ['a', 'red-haired', 'man', "'s", 'dogs', 'and', '50', '%', 'ca', "n't", 'walk']
    """
    plain = unicodedata.normalize("NFC", text).lower().replace("‘", "'").replace("’", "'")
    return TOKEN.findall(plain)
