"""Translate the names of the published weights to those of our networks, and back.

Known are the names of commit d2792c9, which the published weights have, and those of the repository's later head.
"""

from __future__ import annotations

import re

# Published prefix (a pattern), ours.
RENAMED = (
    (r"vis(?:ual|ion)_encoder\.(?:vision_model\.)?", "visual_encoder."),
    (r"segmentor\.logit_scale$", "segmentor.class_predictor.logit_scale"),
    (r"segmentor\.class_predictor\.predictor\.", "segmentor.class_predictor."),
)
PUBLISHED = (
    ("visual_encoder.", "visual_encoder.vision_model."),
    ("segmentor.class_predictor.logit_scale", "segmentor.logit_scale"),
)


def our_name(published: str) -> str:
    """Return our name of a published weight."""
    for pattern, ours in RENAMED:
        if match := re.match(pattern, published):
            return ours + published[match.end() :]
    return published


def published_name(ours: str) -> str:
    """Return the name of one of our weights in the published files."""
    for prefix, published in PUBLISHED:
        if ours.startswith(prefix):
            return published + ours[len(prefix) :]
    return ours
