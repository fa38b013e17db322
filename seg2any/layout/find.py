"""Find the layouts in a folder, and warn about similar files that are left out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from seg2any.layout.checks import LayoutError, LayoutWarning
from seg2any.layout.collection import split_reference
from seg2any.layout.color_map import SUFFIXES
from seg2any.layout.document import open_collection, read_annotation
from seg2any.layout.entries import Annotation
from seg2any.system.errors import shown
from seg2any.system.files import user_path

REPORT_FILE = "preflight.json"  # written by `infer.py --check`, maybe into a folder of layouts, but not a layout


def find_layouts(path: Path) -> list[Path]:
    """List the layouts in a folder: JSON and npz files, then folders that are one layout.

    If `path` is itself a layout, a file or a folder with only one JSON and its mask pictures, the list is [path]; if it
    is a COCO file of several images, the list has NAME.json#ID for each that has annotations. Warns with LayoutWarning
    about pictures without a JSON and about folders of several layouts, which are left out, and about images without
    annotations. Raises LayoutError if `path` does not exist or nothing in it looks like a layout.
    """
    if not path.is_dir():
        if not split_reference(path)[0].exists():
            raise LayoutError(f"{path}: no such file or folder; give a layout or a folder of layouts")
        return _images_of(path) if path.suffix.lower() == ".json" else [path]
    entries = _entries_of(path)
    files = layout_files_in(path)
    held = {entry: layout_files_in(entry) for entry in entries if entry.is_dir()}
    folders = [entry for entry, inside in held.items() if _is_one_json(inside)]
    masks = _warn_of_orphans(path, entries, files)
    for folder in folders:
        _warn_of_orphans(folder, _entries_of(folder), held[folder])
    _warn(path, [entry for entry, inside in held.items() if inside and entry not in folders], "folders of layouts")
    if not files and not folders:
        raise LayoutError(f"{path}: has no layout in it; put NAME.json with NAME.png, or NAME.npz, there")
    if _is_one_json(files) and not folders and (masks or masks_of(files[0])):
        return [path]
    return files + folders


def _images_of(path: Path) -> list[Path]:
    """List the images of a JSON; [path] if it is of one image or damaged, which its reader reports."""
    try:
        collection = open_collection(path)
    except LayoutError:
        return [path]
    if collection is None:
        return [path]
    bare = [id for id in collection.images if id not in collection.numbers]
    others = [id for id in collection.numbers if id not in collection.images]
    _warn(path, [Path(id) for id in bare], "images without annotations")
    _warn(path, [Path(id) for id in others], "annotations of images that are not listed")
    return [path.with_name(f"{path.name}#{id}") for id in collection.images if id in collection.numbers]


def layout_files_in(folder: Path) -> list[Path]:
    """List the JSON and npz files of a folder, each of which may be a layout."""
    found = (entry for entry in _entries_of(folder) if entry.suffix.lower() in (".json", ".npz"))
    return [entry for entry in found if entry.name != REPORT_FILE and entry.is_file()]


def _entries_of(folder: Path) -> list[Path]:
    """List the entries of a folder that are not hidden, sorted by name."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _is_one_json(files: Sequence[Path]) -> bool:
    return len(files) == 1 and files[0].suffix.lower() == ".json"


def only_json(folder: Path) -> Path:
    """Return the JSON of a folder that is one layout.

    Raises LayoutError unless it is the only JSON or npz there.
    """
    found = layout_files_in(folder)
    if not _is_one_json(found):
        names = ", ".join(file.name for file in found[:4]) + (", ..." if len(found) > 4 else "") or "none"
        raise LayoutError(f"{folder}: has {names} where the folder of one layout has one JSON; give the file itself")
    return found[0]


def masks_of(annotation: Path) -> set[Path]:
    """Return the mask pictures that a JSON names.

    The set is empty if the JSON is invalid, which its reader reports.
    """
    found = _read_quietly(annotation)
    return set() if found is None else _named_by(found, annotation)


def pictures_of(annotation: Path) -> set[Path]:
    """Return the pictures that belong to a JSON: those of `masks_of`, and its colour map."""
    found = _read_quietly(annotation)
    if found is None:
        return set()
    has_colors = any(region.color is not None for region in found.regions)
    return _named_by(found, annotation) | ({beside(annotation, SUFFIXES)} if has_colors else set())


def _read_quietly(annotation: Path) -> Annotation | None:
    """Read a JSON without the warnings and errors that its reader repeats."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read_annotation(annotation)
    except LayoutError:
        return None


def _named_by(found: Annotation, annotation: Path) -> set[Path]:
    masks = {annotation.parent / user_path(region.mask) for region in found.regions if region.mask is not None}
    try:
        return masks | ({panoptic_picture(annotation, found.panoptic)} if found.panoptic else set())
    except LayoutError:
        return masks


def beside(path: Path, suffixes: Sequence[str]) -> Path:
    """Find the file named like `path` with one of these suffixes, in small letters or capitals.

    Earlier suffixes come first; if there is no such file, the path with the first suffix is returned.
    """
    candidates = [path.with_suffix(spelt) for suffix in suffixes for spelt in (suffix, suffix.upper())]
    return next((candidate for candidate in candidates if candidate.is_file()), candidates[0])


def panoptic_picture(annotation: Path, name: str) -> Path:
    """Return the path of a JSON's panoptic picture: beside it, else, as in COCO, in the folder of the JSON's name.

    Raises LayoutError for a picture outside of the JSON's folder.
    """
    beside = picture_below(annotation, name, f"{annotation}: file_name")
    inside = picture_below(annotation, f"{annotation.stem}/{name}", f"{annotation}: file_name")
    return inside if inside.is_file() and not beside.is_file() else beside


def picture_below(annotation: Path, name: str, where: str) -> Path:
    """Return the path of a picture that a JSON names.

    Raises LayoutError unless it lies below the folder of the JSON, wherever links lead: a stranger's JSON would read
    any picture, or find out by its message which files exist.
    """
    folder, path = annotation.parent, annotation.parent / user_path(name)
    try:
        is_below = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links that lead in a circle
        is_below = False
    if not is_below:
        raise LayoutError(f"{where} is {shown(name)}, not below the folder of the JSON; put the picture there")
    return path


def _warn_of_orphans(path: Path, entries: Iterable[Path], files: Iterable[Path]) -> set[Path]:
    """Warn about pictures that no file names, and return the mask pictures that files name."""
    stems = {file.stem for file in files}
    pictures = [entry for entry in entries if entry.suffix.lower() in SUFFIXES and entry.stem not in stems]
    if not pictures:  # usually, so that no JSON has to be read here
        return set()
    masks = {mask for file in files if file.suffix.lower() == ".json" for mask in masks_of(file)}
    _warn(path, [picture for picture in pictures if picture not in masks], "pictures without a JSON")
    return masks


def _warn(path: Path, left_out: list[Path], kind: str) -> None:
    if left_out:
        names = ", ".join(entry.name for entry in left_out[:4]) + (", ..." if len(left_out) > 4 else "")
        text = " ".join(f"{path}: {kind} are left out: {len(left_out)} ({names})".split())
        warnings.warn(text, LayoutWarning, stacklevel=4)
