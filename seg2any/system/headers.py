"""Find the weights of a network's folder and read names, shapes and dtypes in them, but no weight.

Folders are those of diffusers and transformers: one file, or shards with an index, perhaps of a variant such as fp16.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from seg2any.system.errors import UserError, brief, shown
from seg2any.system.json_text import check_depth, parse_json
from seg2any.system.limits import limits
from seg2any.system.pickled import load_pickled

SAFETENSORS = (".safetensors", ".sft")  # endings


@dataclass(frozen=True)
class TensorHeader:
    """Shape and dtype of a tensor in a file; the dtype as safetensors writes it, such as F16, BF16, F8_E4M3 or U8."""

    dtype: str
    shape: tuple[int, ...]


def parse_header(file: BinaryIO) -> tuple[dict[str, dict], int]:
    """Parse the header of a safetensors file; return its entries by name and the first byte of the data.

    Raises ValueError for a file of another kind or a damaged one.
    """
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= limits().header_bytes:
        raise ValueError("it is no safetensors file, or its header is too long")
    text = file.read(length)
    check_depth(text)
    header = json.loads(text)
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header.pop("__metadata__", None)
    return header, 8 + length


def read_headers(files: Iterable[Path]) -> dict[str, TensorHeader]:
    """Read the tensors of .safetensors, .sft and .bin files by name, without their numbers.

    Raises UserError for a damaged or cut file.
    """
    headers = {}
    for path in files:
        headers |= _of_safetensors(path) if path.suffix in SAFETENSORS else _of_pickle(path)
    return headers


def _of_safetensors(path: Path) -> dict[str, TensorHeader]:
    try:
        with open(path, "rb") as file:
            header, begin = parse_header(file)
        end = begin + max((about["data_offsets"][1] for about in header.values()), default=0)
        found = {name: TensorHeader(about["dtype"], tuple(about["shape"])) for name, about in header.items()}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise UserError(f"{path}: is not a safetensors file, or is damaged ({brief(error)}); fetch it again") from None
    if (size := path.stat().st_size) < end:
        raise UserError(f"{path}: has {size} of {end} bytes, the download is incomplete; fetch it again")
    return found


def _of_pickle(path: Path) -> dict[str, TensorHeader]:
    import torch  # late: the files of today are safetensors

    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    try:
        content = load_pickled(path, "meta", mapped=True)
        return {
            name: TensorHeader(names.get(tensor.dtype, str(tensor.dtype).removeprefix("torch.")), tuple(tensor.shape))
            for name, tensor in content.items()
        }
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({brief(error)}); fetch it again, as .safetensors") from None


def variant_of(folder: Path, stems: Iterable[str]) -> str | None:
    """Return the variant, such as fp16, of a network's folder that has no weights but those of a variant.

    stems  the names that its weights may have, without endings

    Raises UserError if there are several variants.
    """
    stems = tuple(stems)
    if weights_files(folder, stems):
        return None
    pattern = re.compile(rf"(?:{'|'.join(stems)})\.([A-Za-z]\w*)(?:-\d+-of-\d+)?\.safetensors")
    found = {match[1] for path in folder.glob("*") if (match := pattern.fullmatch(path.name))}
    if len(found) > 1:
        raise UserError(f"{folder}: holds the variants {', '.join(sorted(found))} and no other weights; keep one")
    return found.pop() if found else None


def weights_files(folder: Path, stems: Iterable[str], variant: str | None = None) -> tuple[Path, ...]:
    """Return the weight files of a network's folder, () without any. See `variant_of`.

    Raises UserError for an index that names missing files.
    """
    mark = f".{variant}" if variant else ""
    for ending in ("safetensors", "bin"):
        for stem in stems:
            for index in (f"{stem}.{ending}.index{mark}.json", f"{stem}{mark}.{ending}.index.json"):
                if (folder / index).is_file():
                    return _shards(folder / index)
            if (file := folder / f"{stem}{mark}.{ending}").is_file():
                return (file,)
    return ()


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(parse_json(index.read_bytes())["weight_map"].values()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{index}: is damaged ({brief(error)}); fetch it again") from None
    if beyond := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise UserError(f"{index}: names {shown(beyond[0])}, which is no file beside it; fetch it again")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{index}: {len(missing)} of its {len(names)} files are missing, first {missing[0]}; the download is "
            "incomplete, fetch it again"
        )
    return tuple(index.parent / name for name in names)
