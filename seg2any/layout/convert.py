"""Convert layouts between formats, all ways through `Layout`.

json     NAME.json with NAME.png, as published      npz      NAME.npz
coco     NAME.json with run lengths                  labelme  NAME.json of labelme
cvat     one XML for all images                      ade      annotations/NAME.png, class numbers
flux3    NAME.txt, a prompt with boxes               ideogram4  NAME.json, a prompt with boxes
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from seg2any.layout.ade import MAPS, class_names, find_maps, is_full_ade, read_full_ade, read_map, write_map
from seg2any.layout.carried import FORMATS, fitted
from seg2any.layout.checks import LayoutError, LayoutWarning
from seg2any.layout.cvat import read_cvat, write_cvat
from seg2any.layout.document import decode_json, read_json
from seg2any.layout.find import layout_files_in
from seg2any.layout.flux3 import read_flux3, split_caption, write_caption
from seg2any.layout.ideogram4 import is_ideogram4, read_ideogram4, write_ideogram4
from seg2any.layout.labelme import bounds, is_labelme, read_labelme, write_labelme
from seg2any.layout.layout import Layout
from seg2any.layout.rle import encode_rle
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write
from seg2any.system.limits import limits

SUFFIXES = {"json": ".json", "npz": ".npz", "coco": ".json", "labelme": ".json", "cvat": ".xml", "ade": ".png"}
SUFFIXES |= {"flux3": ".txt", "ideogram4": ".json"}
PROMPTS = {"flux3": write_caption, "ideogram4": write_ideogram4}
SIZE = (1024, 1024)
Names = Mapping[int, str]
Reader = Callable[[Path], Iterable[tuple[Layout, list[str]]]]


def convert(source: Path, target: Path, form: str, names: Names, size: tuple[int, int] = SIZE) -> Iterator[str]:
    """Convert a file or folder of layouts; yield a line for each file written and for each thing that is lost.

    target  a file for one layout or for "cvat", else a folder; files that exist are refused
    form    one of `seg2any.layout.carried.FORMATS`
    names   of the classes of ADE20K, unless the folder brings its own
    size    (H, W) of layouts whose format holds none

    Raises LayoutError, before anything is written if a layout cannot be read.
    """
    found, lost = [], []
    for layout, about in read_any(source, names, size):
        fit, more = fitted(layout, form, names)
        found.append(fit)
        lost += [*about, *more]
    files = list(_files(found, target, form))
    _check(files, source)
    yield from dict.fromkeys(lost)
    if form == "cvat":
        write_cvat(found, files[0])
        yield f"{files[0]}: {len(found)} images"
        return
    for layout, file in zip(found, files, strict=True):
        _write(layout, file, form, names)
        yield f"{file}: {len(layout.masks)} regions"


def read_any(source: Path, names: Names, size: tuple[int, int] = SIZE) -> Iterator[tuple[Layout, list[str]]]:
    """Yield every layout of a file or folder, each with lines about what a layout cannot hold.

    size  (H, W) of layouts whose format holds none

    Raises LayoutError.
    """
    if source.suffix.lower() == ".xml" and source.is_file():
        yield from read_cvat(source)
        return
    if source.is_dir() and (maps := find_maps(source)):
        own = class_names(source, names)
        yield from ((read_map(path, own), []) for path in maps)
        return
    foreign = _foreign_files(source, size)
    if foreign:
        for path, read in foreign.items():
            yield from read(path)
        return
    for path in Layout.find(source):
        yield _read_quietly(path)


def _foreign_files(source: Path, size: tuple[int, int]) -> dict[Path, Reader]:
    """Map the files of other programs in a folder, or the one file, to their readers; {} if there is none."""
    texts = _with_suffix(source, ".txt")
    paths = texts if source in texts else [source] if source.is_file() else []
    paths = layout_files_in(source) if source.is_dir() else paths
    readers: dict[Path, Reader] = dict.fromkeys(_with_suffix(source, ".xml"), read_cvat)
    readers |= {path: read for path in texts if (read := _kind_of_text(path, size))}
    kinds = {path: _kind(path, size) for path in paths if path not in readers}
    if not readers and not any(kinds.values()):
        return {}
    return readers | {path: kind or (lambda path: [_read_quietly(path)]) for path, kind in kinds.items()}


def _with_suffix(source: Path, suffix: str) -> list[Path]:
    """List the files of a folder, or the one file, with a suffix."""
    found = sorted(source.iterdir()) if source.is_dir() else [source]
    return [path for path in found if path.suffix.lower() == suffix and path.is_file() and path.name[0] != "."]


def _kind(path: Path, size: tuple[int, int]) -> Reader | None:
    """Return the reader of a JSON of another program, None for one of this program or a broken one."""
    if path.suffix.lower() != ".json":
        return None
    try:
        document = read_json(path)
    except LayoutError:
        return None
    if is_labelme(document):
        return lambda path: [read_labelme(path)]
    if is_ideogram4(document):
        return lambda path: [read_ideogram4(path, document, size)]
    if isinstance(document, dict) and isinstance(prompt := document.get("prompt"), str) and split_caption(prompt):
        return lambda path: [read_flux3(path, prompt, size)]
    return (lambda path: [read_full_ade(path)]) if is_full_ade(document) else None


def _kind_of_text(path: Path, size: tuple[int, int]) -> Reader | None:
    """Return the reader of a prompt with boxes, None for any other text."""
    if path.stat().st_size > limits().json_bytes:
        return None
    try:
        text = path.read_bytes().decode("utf-8-sig")
        document = decode_json(text.encode()) if text.lstrip().startswith("{") else None
    except ValueError:
        return None
    if is_ideogram4(document):
        return lambda path: [read_ideogram4(path, document, size)]
    return (lambda path: [read_flux3(path, text, size)]) if split_caption(text) else None


def _read_quietly(path: Path) -> tuple[Layout, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layout = Layout.read(path)
    return layout, [str(one.message) for one in caught if issubclass(one.category, LayoutWarning)]


def _files(layouts: Iterable[Layout], target: Path, form: str) -> Iterator[Path]:
    """Yield the file of each layout. Raises UserError where one file would hold several."""
    layouts, suffix = list(layouts), SUFFIXES[form]
    if target.suffix.lower() == suffix and (len(layouts) == 1 or form == "cvat"):
        yield target
        return
    if target.suffix.lower() in SUFFIXES.values():
        reason = f"{len(layouts)} layouts do not fit into one file" if len(layouts) > 1 else f"{form} ends in {suffix}"
        raise UserError(f"{target}: {reason}; give a folder")
    if form == "cvat":
        yield target / "annotations.xml"
        return
    folder = target / MAPS if form == "ade" else target
    yield from (folder / f"{Path(layout.name).name or 'layout'}{suffix}" for layout in layouts)


def _check(files: Iterable[Path], source: Path) -> None:
    files = list(files)
    for file in files:
        if file.exists() or (file.suffix == ".json" and file.with_suffix(".png").exists()):
            raise UserError(f"{file}: is there already; choose another folder, or remove it")
    if len({*files}) < len(files):
        twice = next(file for file in files if files.count(file) > 1)
        raise UserError(f"{source}: two layouts would both write {twice}; rename one")


def _write(layout: Layout, file: Path, form: str, names: Names) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if form in ("json", "npz"):
        layout.write(file)
    elif form == "coco":
        write_coco(layout, file)
    elif form == "labelme":
        write_labelme(replace(layout, name=file.stem), file)
    elif form in PROMPTS:
        with atomic_write(file) as temporary:
            temporary.write_text(PROMPTS[form](layout) + "\n", encoding="utf-8")
    else:
        write_map(layout, file, names)


def write_coco(layout: Layout, path: Path) -> None:
    """Write run lengths, with a category for each different caption; every mask has a pixel. There may be no mask."""
    ids = {text: number for number, text in enumerate(dict.fromkeys(layout.captions), start=1)}
    annotations = []
    for number, (text, mask) in enumerate(zip(layout.captions, layout.masks, strict=True), start=1):
        left, top, right, bottom = bounds(mask)
        annotations.append(
            {
                "id": number,
                "image_id": 1,
                "category_id": ids[text],
                "text": text,
                "segmentation": encode_rle(mask),
                "area": int(mask.sum()),
                "bbox": [left, top, right - left + 1, bottom - top + 1],
                "iscrowd": 0,
            }
        )
    height, width = layout.size
    own = {"caption": layout.caption, "seed": layout.seed}
    document = {
        **{key: value for key, value in own.items() if value is not None},
        "images": [{"id": 1, "file_name": f"{path.stem}.png", "width": width, "height": height}],
        "categories": [{"id": number, "name": text} for text, number in ids.items()],
        "annotations": annotations,
        **({} if annotations else {"empty": []}),
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")


__all__ = ["FORMATS", "convert", "read_any"]
