"""Names of the attention backends, and the reasons for refusing others.

A backend is listed only if it honours the whole pattern and a test compares it with `dense`. Kernels that reduce the
mask to key padding, or drop it, would silently turn regional attention into plain attention.
"""

from __future__ import annotations

from seg2any.system.errors import UserError

BACKEND_NAMES = ("auto", "sdpa", "grouped", "flex", "matmul", "dense")

UNSAFE = {
    "varlen": "it reduces the mask to key padding, so the regions vanish",
    "flash": "flash kernels take no mask, so the regions vanish",
    "aiter": "it takes no mask, so the regions vanish",
    "sage": "it drops the mask, so the regions vanish",
    "xformers": "it needs another mask layout, and no test compares it with the dense oracle",
    "cudnn": "it falls back or fails on some additive masks, and no test compares it with the dense oracle",
}


def check_backend(name: str, method: str = "hard") -> None:
    """Refuse a backend that is unknown, would lose the regions, or cannot run the mask method.

    Raises UserError with the reason.
    """
    if name not in BACKEND_NAMES:
        reason = next((f": {why}" for part, why in UNSAFE.items() if part in str(name).lower()), "")
        raise UserError(f"attention_backend {name!r} cannot be used{reason}; use one of {', '.join(BACKEND_NAMES)}")
    if name == "grouped" and method == "place":
        raise UserError(
            "attention_backend 'grouped' cannot run attention_mask_method 'place', which gives every image token its "
            "own weights; use auto, sdpa or flex"
        )
