"""deeplab/: the segmenter that judges generated images. No case can run before the evaluation has one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def cases(root: Path) -> dict[str, Callable[[], None]]:
    return {}


def pending(root: Path) -> dict[str, str]:
    names = sorted({path.stem for path in (root / "deeplab").glob("*.*") if path.suffix in (".json", ".safetensors")})
    return {name: "the DeepLabV3 judge comes with the evaluation" for name in names}
