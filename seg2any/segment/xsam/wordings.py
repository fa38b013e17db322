"""The published wordings of questions and answers; `{}` is where the phrases, the caption or the explanation go."""

from __future__ import annotations

from collections.abc import Sequence

SEG, START, END = "<SEG>", "<p>", "</p>"
SPECIAL_TOKENS = (SEG, START, END)  # in the order in which the tokenizer learns them
PICTURE, REGION = "<image>", "<region>"


def phrase(text: str) -> str:
    """Mark a phrase."""
    return f"{START}{text}{END}"


_ASKED = (
    "Can you segment the image based on the following {}: {{}}",
    "Can you generate segmentation masks for this image based on the specified {}: {{}}",
    "Can you provide segmentation masks for this image based on these {}: {{}}",
    "Could you create segmentation masks for this image according to the specified {}: {{}}",
    "Could you output segmentation masks for this image that highlight the following {}: {{}}",
    "Could you provide segmentation masks for this image according to the specified {}: {{}}",
)


def _asked(what: str, endings: Sequence[str]) -> tuple[str, ...]:
    return tuple(start.format(what) + ending for start, ending in zip(_ASKED, endings, strict=True))


def _answers(what: str) -> tuple[str, ...]:
    return (
        f"{SEG}.",
        f"It is {SEG}.",
        f"Sure, {SEG}.",
        f"Sure, it is {SEG}.",
        f"Sure, the segmentation {what} is {SEG}.",
    )


CATEGORIES = _asked(
    "categories",
    (
        "? Please output the segmentation masks.",
        "? Please generate the segmentation masks.",
        "? Please provide the segmentation masks.",
        "? Please create the segmentation masks.",
        "? Please output the segmentation masks.",
        "? Please respond with the segmentation masks.",
    ),
)
DESCRIBED_CATEGORIES = _asked(
    "categories",
    (
        "? Please first describe the image briefly, then respond with segmentation masks.",
        "? Please first briefly describe the contents of the image, then respond with segmentation masks.",
        "? Please first give me a brief description of the image, then output segmentation masks.",
        "? Please first give me a brief description of this picture, then respond with segmentation masks.",
        "? Please first provide me with a brief description of this photo, then respond with segmentation masks.",
        ". Please first describe the image briefly, then respond with segmentation masks.",
    ),
)
DESCRIBED_ANSWERS = (
    f"{{}} {SEG}.",
    f"{{}} And it is {SEG}.",
    f"{{}} And {SEG}.",
    f"{{}} And the segmentation result is {SEG}.",
)
REGIONS = _asked(
    "regions",
    (
        "? Please output the corresponding segmentation mask.",
        "? Please generate the segmentation masks.",
        "? Please provide the segmentation masks.",
        "? Please create the segmentation masks.",
        "? Please output the segmentation masks.",
        "? Please respond with the segmentation masks.",
    ),
)
RESULT_ANSWERS, MASK_ANSWERS = _answers("result"), _answers("mask")
PHRASES = (
    "Please identify and segment the {} in this image.",
    "Please segment {} in this image.",
    "What is {} in this image? Please output the corresponding segmentation mask.",
    "Can you segment {} in this image? Please generate the segmentation mask.",
    "Could you provide a segmentation mask for the {} in this image? Please provide the segmentation mask.",
    "Where is the {} in this picture? Please output the segmentation masks.",
    "Can you highlight the {} in this image with a segmentation mask? Please output the segmentation mask.",
    "Could you provide a segmentation mask for the {} in this image? Please respond with the segmentation mask.",
    "Where is the {} in this picture? Please output the corresponding segmentation mask.",
    "Can you highlight the {} in this image with a segmentation mask? Please output the segmentation mask.",
)
SENTENCES = (
    "{} Please output the corresponding segmentation mask.",
    "{} Please generate a segmentation mask for this image.",
    "{} Please extract the segmentation mask.",
    "{} Please return the segmentation predictions as masks.",
    "{} Please segment the image.",
)
SHORT_SENTENCES = (
    "Can you segment {} in this image? Please output the segmentation mask.",
    "Can you give the segmentation mask for {} in this image? Please respond with the segmentation mask.",
    "Can you highlight {} and output the corresponding segmentation mask? Please provide the segmentation mask.",
    "What is {} in this image? Please output the corresponding segmentation mask.",
    "What is {} in this image? Please generate a segmentation mask for this image.",
)
EXPLAINED_SENTENCES = (
    "{} Please explain why and output the corresponding segmentation mask.",
    "{} Please explain the reason and output the corresponding segmentation mask.",
    "{} Please give some explanation and output the corresponding segmentation mask.",
    "{} Please explain the reason and output the corresponding segmentation mask.",
    "{} Please give detailed explanation and output the corresponding segmentation mask.",
)
EXPLAINED_ANSWERS = (
    f"{{}} {SEG}.",
    f"{{}} It is {SEG}.",
    f"{{}} And {SEG}.",
    f"{{}} And it is {SEG}.",
    f"{{}} And the segmentation mask is {SEG}.",
)
DESCRIPTIONS = (
    "Could you please give me a brief description of the image? Please respond with interleaved segmentation masks for"
    " the corresponding parts of the answer.",
    "Can you provide a brief description of the this image? Please output interleaved segmentation masks for the"
    " corresponding phrases.",
    "Please briefly describe the contents of the image. Please respond with interleaved segmentation masks for the"
    " corresponding parts of the answer.",
    "Could you give a brief explanation of what can be found within this picture? Please output interleaved"
    " segmentation masks for the corresponding phrases.",
    "Could you give me an brief explanation of this picture? Please respond with interleaved segmentation masks for"
    " the corresponding phrases.",
    "Could you provide me with a briefly analysis of this photo? Please output interleaved segmentation masks for the"
    " corresponding parts of the answer.",
)
DESCRIPTION_ANSWERS = (
    f"{{}} {SEG}.",
    f"{{}} And {SEG}.",
    f"{{}} The segmentation mask is {SEG}.",
    f"{{}} And the segmentation mask is {SEG}.",
)
