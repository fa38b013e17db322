"""Cut a golden root down to the subset that the repository carries.

Usage: `python -m tests.parity.make_subset ROOT [TARGET]`

Cases are chosen by size only, smallest first until a section's budget is spent, so that the choice is the same for
every golden root. Files are copied unchanged, except that json loses its whitespace and an index loses the cases that
are left out. Also left out: the published example masks of contour/, the training runs, and the segmenter of
the evaluation.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from tests.golden_root import SUBSET
from tests.parity.inventory import sections

MASK_BYTES, FILTER_BYTES, CONTOUR_BYTES = 70_000, 45_000, 30_000
EXAMPLE = "seg_map.png"  # in the folders of published example masks
# tokenizer.json holds everything that the sentencepiece file does.
REDUNDANT = {"spiece.model"}


def copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder without `REDUNDANT` files; json is written without whitespace."""
    if source.is_dir():
        for path in sorted(source.iterdir()):
            if path.name not in REDUNDANT:
                copy(path, target / path.name)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".json":
        _write_json(target, json.loads(source.read_text(encoding="utf-8")))
    else:
        shutil.copyfile(source, target)


def smallest(sizes: dict[str, int], budget: int) -> list[str]:
    """Return the smallest names that together fit into `budget` bytes; at least one."""
    chosen, spent = [], 0
    for name in sorted(sizes, key=lambda name: (sizes[name], name)):
        spent += sizes[name]
        if chosen and spent > budget:
            break
        chosen.append(name)
    return chosen


def cut_transformer(root: Path, target: Path) -> None:
    runs = {path.name: _size(path) for path in root.iterdir() if path.is_dir()}
    for run in smallest(runs, 0):
        copy(root / run, target / run)


def cut_pipeline(root: Path, target: Path) -> None:
    """Copy the model, the adapters, and the smallest case of a usual pipeline call."""
    index = _index(root)
    files = {name: root / "cases" / f"{name}.safetensors" for name in index["cases"]}
    usual = {name: _size(path) for name, path in files.items() if _is_usual(path, index["cases"][name])}
    chosen = smallest(usual, 0)
    for folder in ("model", "checkpoint"):
        copy(root / folder, target / folder)
    for name in chosen:
        copy(files[name], target / "cases" / files[name].name)
    _write_index(target, index, chosen)


def _is_usual(path: Path, case: dict) -> bool:
    """Return whether a case is a usual pipeline call.

    Recorded with adapters, both attention masks and filtered condition tokens; only the latents are random.
    """
    with safe_open(path, "pt") as tensors:
        has_condition = "mid/cond_hidden_states" in tensors.keys()  # noqa: SIM118 (not a dict)
    deterministic = case["generator"] is None and case["vae_posterior"].startswith("mode")
    filtered = case["opts"].get("is_filter_cond_token", True)
    bug = path.stem.startswith("BUG")
    return has_condition and deterministic and filtered and case["lora"] and case["method"] == "hard" and not bug


def cut_attn_mask(root: Path, target: Path) -> None:
    index = _index(root)
    with safe_open(root / "masks.safetensors", "pt") as masks:
        tensors = {key: masks.get_tensor(key) for key in masks.keys()}  # noqa: SIM118 (not a dict)
    sizes = dict.fromkeys(index["cases"], 0)
    for key, tensor in tensors.items():
        if (case := key.split("/")[0]) in sizes:
            sizes[case] += tensor.numel() * tensor.element_size()
    chosen = smallest(sizes, MASK_BYTES)
    kept = {key: tensor for key, tensor in tensors.items() if key.split("/")[0] in {*chosen, "extra"}}
    target.mkdir(parents=True)
    save_file(kept, target / "masks.safetensors")
    for name in _cases_named_in_extras(chosen, index):
        for label in sorted(root.glob(f"{name}_label*.png")):
            copy(label, target / label.name)
    _write_index(target, index, chosen)


def _cases_named_in_extras(chosen: Iterable[str], index: dict) -> list[str]:
    # `extra/*` masks are recorded on the labels of a case, which therefore have to be copied too.
    named = json.dumps({key: value for key, value in index.items() if key != "cases"})
    return sorted({*chosen, *(name for name in index["cases"] if f'"{name}"' in named)})


def cut_filter(root: Path, target: Path) -> None:
    index = _index(root)
    sizes = {name: _size(path) for name in index["cases"] if (path := root / f"{name}.safetensors").is_file()}
    chosen = smallest(sizes, FILTER_BYTES)
    for name in chosen:
        copy(root / f"{name}.safetensors", target / f"{name}.safetensors")
    _write_index(target, index, chosen)


def cut_contour(root: Path, target: Path) -> None:
    index = _index(root)
    sizes = {name: _size(root / name) for name in index["cases"] if not (root / name / EXAMPLE).exists()}
    chosen = smallest(sizes, CONTOUR_BYTES)
    for name in chosen:
        copy(root / name, target / name)
    if (lengths := root / "t5_token_len.json").is_file():
        copy(lengths, target / lengths.name)
    _write_index(target, index, chosen)


CUTS: dict[str, Callable[[Path, Path], None]] = {
    "attn_mask": cut_attn_mask,
    "contour": cut_contour,
    "filter": cut_filter,
    "lora_keys": copy,
    "pipeline": cut_pipeline,
    "sampler": copy,
    "transformer": cut_transformer,
}


def make_subset(root: Path, target: Path) -> int:
    """Replace `target` by the subset of `root` and return its size in bytes, manifest included."""
    shutil.rmtree(target, ignore_errors=True)
    for section in sections(root):
        if section in CUTS:
            CUTS[section](root / section, target / section)
    for name in ("README.md", "bugs_demo.json"):
        copy(root / name, target / name)
    files = sorted(path for path in target.rglob("*") if path.is_file() and path.name != "README.md")
    _write_json(target / "manifest.json", {"files": [_entry(path, target) for path in files]})
    return _size(target)


def _entry(path: Path, target: Path) -> dict:
    content = path.read_bytes()
    name = path.relative_to(target).as_posix()
    return {"path": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _index(section: Path) -> dict:
    return json.loads((section / "index.json").read_text(encoding="utf-8"))


def _write_index(section: Path, index: dict, chosen: list[str]) -> None:
    _write_json(section / "index.json", {**index, "cases": {name: index["cases"][name] for name in sorted(chosen)}})


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, separators=(",", ":"), ensure_ascii=False) + "\n", encoding="utf-8")


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


if __name__ == "__main__":
    destination = Path(sys.argv[2]) if len(sys.argv) > 2 else SUBSET
    print(f"{make_subset(Path(sys.argv[1]), destination):,} bytes in {destination}")
