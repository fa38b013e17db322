"""Digest files, weights and tokenizers, to tell one from another.

file_digest          every byte of one file
folder_digest        every byte of the safetensors files of a folder: `sha256` of adapters in recipes
weights_fingerprint  some bytes of every tensor in a model's folder: the identity of a training run, `fingerprint` of
                     models in recipes
module_samples       some numbers of every tensor of a loaded network: part of a cache's name
tokenizer_digest     vocabulary and behaviour of a tokenizer: part of a bucket map's origin
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO

from seg2any.system.headers import parse_header
from seg2any.system.tensor_file import open_tensor_file

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = re.compile(r"\w+(-\d+-of-\d+)?\.(safetensors|bin)")
VARIANTS = re.compile(r"\w+\.\w+(-\d+-of-\d+)?\.safetensors")  # such as model.fp16.safetensors: read if alone
SPOTS, SPOT_BYTES = 4, 64  # read of every tensor; another training changes nearly all numbers of what it changes
SAMPLED_NUMBERS = 256  # of every tensor of a loaded network
BLOCK = 1 << 22
PROBES = ("a cat", "", " Two  spaces, and\na line. ", "naïve ﬁlm №5 – 猫", "curtain,drapery,mantle")


def file_digest(path: Path) -> str:
    """Return the sha256 hex digest of a file. Raises OSError."""
    return _digest_of((path,))


def folder_digest(folder: Path) -> str:
    """Return the sha256 hex digest of a folder's safetensors files, in order of their paths.

    Hidden files, which killed writers may have left, do not count.
    """
    return _digest_of(path for path in sorted(folder.rglob("*.safetensors")) if not path.name.startswith("."))


def known_weights(name: str | Path) -> str:
    """Return the digest of weights that are on this disk, in a folder or file; the name itself of those elsewhere."""
    path = Path(name)
    return folder_digest(path) if path.is_dir() else file_digest(path) if path.is_file() else str(name)


def weights_fingerprint(folder: Path, parts: Iterable[str], files: Mapping[str, Path] = MappingProxyType({})) -> str:
    """Return a digest of some bytes of every tensor in a model's folder; "" without weights.

    Neither the folder's name nor how tensors are spread over files counts, so a model may move or be sharded anew. For
    FLUX.1-dev a megabyte is read, in about a second.

    parts  subfolders of the networks that count
    files  single files that hold the weights of some parts instead. Raises UserError if one is damaged
    """
    lines = [
        f"{part}/{line}"
        for part in parts
        for line in (_file_lines(files[part]) if part in files else _network_lines(folder / part))
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogatepass")).hexdigest()[:16] if lines else ""


def module_samples(module: nn.Module) -> Iterator[bytes]:
    """Yield name, shape, dtype and at least SAMPLED_NUMBERS numbers of every tensor.

    Smaller tensors are yielded whole.
    """
    for name, tensor in module.state_dict().items():
        spread = tensor.flatten()[:: max(1, tensor.numel() // SAMPLED_NUMBERS)].float().cpu()
        yield f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode() + spread.numpy().tobytes()


def vocabulary(tokenizer: object) -> list[tuple[str, int]]:
    """Return a tokenizer's texts and numbers, sorted by text."""
    return sorted(tokenizer.get_vocab().items())


def tokenizer_digest(tokenizer: object) -> str:
    """Return the sha256 hex digest of the vocabulary and of the tokens of PROBES.

    A library may reword everything else that a tokenizer says of itself.
    """
    ids = [tokenizer(text, padding=False, truncation=False, verbose=False).input_ids for text in PROBES]
    return hashlib.sha256(repr((vocabulary(tokenizer), ids)).encode()).hexdigest()


def _digest_of(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _network_lines(folder: Path) -> Iterator[str]:
    """Yield name, size and digest of some bytes of every tensor of one network."""
    files = [path for path in folder.glob("*") if WEIGHTS.fullmatch(path.name)]
    files = files or [path for path in folder.glob("*") if VARIANTS.fullmatch(path.name)]
    safe = [path for path in files if path.suffix == ".safetensors"]  # preferred where there are both
    for path in safe or files:
        with open(path, "rb") as file:
            for name, begin, end in _tensors(file) if safe else [(path.name, 0, path.stat().st_size)]:
                yield f"{name} {end - begin} {_sampled(file, begin, end)}"


def _file_lines(path: Path) -> Iterator[str]:
    """Yield name, shape, size and digest of some bytes of every tensor of a single file."""
    opened = open_tensor_file(path)
    with open(path, "rb") as file:
        for name, (begin, end) in opened.spans().items():
            yield f"{name} {opened.headers[name]} {end - begin} {_sampled(file, begin, end)}"


def _tensors(file: BinaryIO) -> list[tuple[str, int, int]]:
    """List name, first byte and end of every tensor of a safetensors file.

    A damaged file becomes one entry: loading it will raise the error.
    """
    try:
        header, start = parse_header(file)
        found = []
        for name, about in header.items():
            begin, end = about["data_offsets"]
            if type(begin) is not int or type(end) is not int or not 0 <= begin <= end < 2**40:
                raise ValueError(f"{name} lies outside of the file")
            found.append((f"{name} {about['dtype']} {about['shape']}", start + begin, start + end))
        return found
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, MemoryError):
        return [("damaged", 0, 8)]


def _sampled(file: BinaryIO, begin: int, end: int) -> str:
    """Return a digest of SPOTS pieces of SPOT_BYTES bytes, spread over bytes `begin` to `end`."""
    digest = hashlib.sha256()
    for spot in range(SPOTS):
        file.seek(begin + max(0, end - begin - SPOT_BYTES) * spot // (SPOTS - 1))
        digest.update(file.read(min(SPOT_BYTES, end - begin)))
    return digest.hexdigest()[:16]
