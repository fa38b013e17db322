"""Find the thing that a caption is about: "a black cat with a bell on a mat" is about "black cat"."""

from __future__ import annotations

import re

LEAD_IN = re.compile(
    r"^(?:(?:the|this|an?)\s+)?(?:image|picture|photo|photograph|region)\s+(?:shows?|depicts?|features?|contains?|of)\s+",
    re.IGNORECASE,
)
ARTICLE = re.compile(r"an?|the|th(?:is|at|ese|ose)|some|his|her|its|their|one", re.IGNORECASE)
# A caption goes on about something else behind each of these.
END = re.compile(
    r"with(?:out|in)?|on|in(?:to|side)?|at|by|near|under|over|above|below|behind|beside|against|from|onto|to|for|along|"
    r"across|around|between|among|next|outside|through|towards?|upon|that|wh(?:ich|o|ose|ere|ile)|and|is|are|was|were|"
    r"has|have|had",
    re.IGNORECASE,
)
MOST_WORDS = 8


def noun_phrase(caption: str) -> str:
    """Cut a caption down to what it names first, without article; the caption itself if nothing would be left.

    >>> noun_phrase("A black cat sitting on a mat, with a bell")
    'black cat'
    >>> noun_phrase("a cup of coffee")
    'cup of coffee'
    """
    clause = re.split(r"[,.;:(\n]|\s[-–—]\s", LEAD_IN.sub("", " ".join(caption.split())), maxsplit=1)[0]
    words = clause.split()
    while len(words) > 1 and ARTICLE.fullmatch(words[0]):
        words = words[1:]
    kept = words[:1]
    for word, following in zip(words[1:], (*words[2:], ""), strict=False):
        if END.fullmatch(word) or len(kept) == MOST_WORDS or _is_verb(word, following):
            break
        kept.append(word)
    return " ".join(kept) or caption.strip()


def head_noun(caption: str) -> str:
    """Return the last word of a caption's noun phrase, before "of", in small letters.

    >>> head_noun("A cup of coffee on a table")
    'cup'
    """
    words = noun_phrase(caption).split()
    place = next((number for number, word in enumerate(words) if number and word.lower() == "of"), len(words))
    return words[place - 1].lower() if words else ""


def _is_verb(word: str, following: str) -> bool:
    """Tell "sitting on", "made of" and "wearing a" from "living room" and "red-haired man"."""
    goes_on = following in ("", "of", "up", "down") or END.fullmatch(following) or ARTICLE.fullmatch(following)
    return bool(goes_on) and word.lower().endswith(("ing", "ed", "made", "worn", "built", "drawn"))
