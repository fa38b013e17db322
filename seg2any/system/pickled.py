"""Read files that torch pickled, as tensors and plain values only: nothing that they name is called."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

# What a damaged file makes the restricted unpickler raise.
FAULTS = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(AssertionError, OverflowError, MemoryError, struct.error, OSError),
)


def load_pickled(path: Path, device: str = "cpu", mapped: bool = False) -> Any:
    """Load the content of a file, on a device such as cpu or meta; `mapped` leaves its tensors on the disk.

    Raises ValueError for a damaged file, and for one that holds more than tensors and plain values.
    """
    import torch  # late: the files of today are safetensors

    try:
        return torch.load(path, map_location=device, mmap=mapped, weights_only=True)
    except FAULTS as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
