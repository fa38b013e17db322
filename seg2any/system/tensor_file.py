"""Read tensors of one file by name and rows: safetensors, and GGUF, whose packed numbers become float32.

Only what is asked for is read, so a file may be larger than the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from seg2any.system.errors import UserError, brief
from seg2any.system.headers import SAFETENSORS, TensorHeader, parse_header, read_headers

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

GGUF = ".gguf"
READABLE = (*SAFETENSORS, GGUF)  # endings
GGUF_PACKAGE = "gguf==0.19.0"  # as in requirements.txt


class TensorFile(Protocol):
    """A file of named tensors.

    headers  shape and dtype by name, the dtype as `read` returns it
    """

    headers: Mapping[str, TensorHeader]

    def read(self, name: str, begin: int = 0, end: int | None = None) -> Tensor:
        """Read rows `begin` to `end` (to the last one if None) of a tensor."""

    def spans(self) -> dict[str, tuple[int, int]]:
        """Map each name to the first byte of its numbers and the byte after the last one."""


def open_tensor_file(path: Path) -> TensorFile:
    """Open a .safetensors, .sft or .gguf file. Raises UserError for a damaged file and for a missing package."""
    return GGUFFile(path) if path.suffix == GGUF else SafetensorsFile(path)


class SafetensorsFile:
    """A safetensors file."""

    def __init__(self, path: Path):
        self.path, self.headers = path, read_headers([path])

    def read(self, name: str, begin: int = 0, end: int | None = None) -> Tensor:
        """Read rows of a tensor in the dtype of the file; whole tensors of rank 0 as well."""
        from safetensors import safe_open

        with safe_open(self.path, "pt") as opened:
            if begin == 0 and end is None:
                return opened.get_tensor(name)
            return opened.get_slice(name)[begin:end]

    def spans(self) -> dict[str, tuple[int, int]]:
        """Map each name to the first byte of its numbers and the byte after the last one."""
        with open(self.path, "rb") as file:
            header, start = parse_header(file)
        return {name: tuple(start + offset for offset in about["data_offsets"]) for name, about in header.items()}


class GGUFFile:
    """A GGUF file of llama.cpp's family."""

    def __init__(self, path: Path):
        try:
            import gguf
        except ImportError:
            raise UserError(f"{path}: reading GGUF needs the package gguf; pip install {GGUF_PACKAGE}") from None
        try:
            self._tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
            if bare := next((name for name, tensor in self._tensors.items() if not tensor.data.ndim), None):
                raise ValueError(f"{bare} has no axis")
        except (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError) as error:
            raise UserError(f"{path}: is no GGUF file, or is damaged ({brief(error)}); fetch it again") from None
        self.path, self._unpack = path, gguf.dequantize
        self.headers = {
            name: TensorHeader(
                "F16" if tensor.tensor_type.name == "F16" else "F32", tuple(int(n) for n in reversed(tensor.shape))
            )
            for name, tensor in self._tensors.items()
        }
        self._refuse_unknown_packing()

    def read(self, name: str, begin: int = 0, end: int | None = None) -> Tensor:
        """Read rows of a tensor; F16 stays as it is, everything else becomes float32."""
        import torch

        tensor = self._tensors[name]
        if len(tensor.shape) == 1:  # its bytes have no rows
            return torch.from_numpy(self._unpacked(tensor.data, tensor.tensor_type)[begin:end])
        return torch.from_numpy(self._unpacked(tensor.data[begin:end], tensor.tensor_type))

    def spans(self) -> dict[str, tuple[int, int]]:
        """Map each name to the first byte of its numbers and the byte after the last one."""
        begins = {name: int(tensor.data_offset) for name, tensor in self._tensors.items()}
        return {name: (begin, begin + int(self._tensors[name].n_bytes)) for name, begin in begins.items()}

    def _unpacked(self, data: np.ndarray, packing: object) -> np.ndarray:
        if data.dtype.kind == "f":
            return data.copy()  # else the numbers would be those of the mapped file, read-only
        return self._unpack(data, packing)

    def _refuse_unknown_packing(self) -> None:
        """Raise UserError for the first kind of packing that the package cannot undo."""
        seen = {}
        for name, tensor in self._tensors.items():
            seen.setdefault(tensor.tensor_type, name)
        for packing, name in seen.items():
            tensor = self._tensors[name]
            try:
                self._unpacked(tensor.data[:1] if len(tensor.shape) > 1 else tensor.data, packing)
            except NotImplementedError:
                raise UserError(
                    f"{self.path}: {name} is packed as {packing.name}, which cannot be unpacked here; take another "
                    "file, such as Q8_0 or Q4_K_S"
                ) from None
