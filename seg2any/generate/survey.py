"""Check every layout of a run before any weight is loaded."""

from __future__ import annotations

import json
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from seg2any.attention.settings import MAX_ENTITIES, ConditionSettings
from seg2any.diffusion.prepare import image_size
from seg2any.generate.early import too_many_regions
from seg2any.generate.options import Options
from seg2any.generate.preflight import LayoutReport, ModelFacts, check_layout
from seg2any.generate.recipe import check_size
from seg2any.layout import Layout
from seg2any.layout.checks import LayoutError, LayoutWarning
from seg2any.layout.draw import overlay_with_legend
from seg2any.layout.find import REPORT_FILE
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write, check_name, takes_capitals_for_small

T = TypeVar("T")

MOST_NOTES = 4  # lines before a run


@dataclass(frozen=True)
class Surveyed:
    """A usable layout without its masks: all masks of a folder may not fit into memory."""

    path: Path
    digest: str
    report: LayoutReport


@dataclass(frozen=True)
class Survey:
    """The usable layouts, one line for each layout that is not, and lines about ignored files.

    found  number of layouts, usable or not
    """

    layouts: tuple[Surveyed, ...]
    errors: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    found: int = 1

    @property
    def warnings(self) -> list[str]:
        """Warnings about all layouts, each with the layout's name."""
        own = [f"{layout.report.name}: {text}" for layout in self.layouts for text in layout.report.warnings]
        return [*self.left_out, *own]

    @property
    def notes(self) -> list[str]:
        """The notes on the layouts, each with the layout's name; of many only the first, and how many there are."""
        notes = [f"{layout.report.name}: {text}" for layout in self.layouts for text in layout.report.notes]
        more = [f"{len(notes) - MOST_NOTES + 1} more notes on layouts; --check shows all"]
        return notes if len(notes) <= MOST_NOTES else notes[: MOST_NOTES - 1] + more

    def stop_at_problems(self, strict: bool) -> None:
        """Raise UserError, one line per problem, for unusable layouts and, if strict, for warnings."""
        problems = [*self.errors, *(self.warnings if strict else [])]
        if problems:
            raise UserError("\n".join(problems))

    def goes_on(self, options: Options) -> bool:
        """Tell whether the usable layouts are to be made although others are not usable.

        By default they are where there is more than one layout, unless --strict is given.
        """
        chosen = options.keep_going
        return bool(self.layouts) and (self.found > 1 and not options.strict if chosen is None else chosen)


def survey_layouts(options: Options, settings: ConditionSettings, model: ModelFacts) -> Survey:
    """Read and check every layout of `options.seg_mask_path`.

    Raises UserError if there is no layout, or if the output folder holds the layouts.
    """
    unit = model.pixels_per_token * settings.cond_scale_factor
    layouts, errors = [], []
    found_paths, left_out = _quietly(lambda: Layout.find(options.seg_mask_path))
    for path in found_paths:
        places = (options.seg_mask_path, path if path.is_dir() else path.parent)
        if options.output_path.resolve() in [place.resolve() for place in places]:
            raise UserError(f"--output_path {options.output_path}: is where the layouts are; choose another folder")
        try:
            layout, found = read_quietly(path, options)
            size = image_size([layout], options.height, options.width, unit)
            _check_usable(path, layout, size, options, settings)
            _check_files(path, layout.name, size, options)
            report = check_layout(layout, size, settings, model, known_warnings=found)
        except UserError as error:
            errors.append(str(error))
        else:
            layouts.append(Surveyed(path, layout.digest(), report))
            if options.check:
                _save_overlay(layout, report, overlay_path(layout.name, options))
    collisions = _same_names(layouts, options)
    taken = {path for paths in collisions for path in paths}
    usable = tuple(layout for layout in layouts if layout.path not in taken)
    errors += collisions.values()
    left_out += _alike_names(usable, options)
    return Survey(usable, tuple(dict.fromkeys(errors)), tuple(left_out), len(found_paths))  # shared errors once


def read_layout(path: Path, options: Options) -> Layout:
    """Read a layout with the overlap of the options, else that of the kind of file. Raises LayoutError."""
    layout = Layout.read(path, options.snapping)
    return layout if options.overlap is None else replace(layout, overlap=options.overlap)


def read_quietly(path: Path, options: Options) -> tuple[Layout, list[str]]:
    """Read a layout; return the warnings about it instead of showing them. Raises LayoutError."""
    layout, found = _quietly(lambda: read_layout(path, options))
    if options.overlap is None and layout.overlap == "share" and (shared := int(layout.shared.sum())):
        found.append(
            f"{shared} pixels lie in several regions and belong to all of them, as in COCO and SA-1B; use "
            "--overlap hide to let later regions lie on top"
        )
    return layout, found


def _quietly(look: Callable[[], T]) -> tuple[T, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen = look()
    return seen, [str(warning.message) for warning in caught if issubclass(warning.category, LayoutWarning)]


def write_report(survey: Survey, settings: ConditionSettings, folder: Path) -> Path:
    """Write the survey as JSON into `folder` and return the path of the file."""
    document = {
        "settings": settings.to_json(),
        "errors": list(survey.errors),
        "warnings": survey.warnings,
        "layouts": [
            {"file": str(layout.path), "sha256": layout.digest, **layout.report.to_json()} for layout in survey.layouts
        ],
    }
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    with atomic_write(folder / REPORT_FILE) as temporary:  # file names may hold bytes that UTF-8 cannot encode
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return folder / REPORT_FILE


def _save_overlay(layout: Layout, report: LayoutReport, path: Path) -> None:
    with atomic_write(path) as temporary:
        overlay_with_legend(layout, report.image_size).save(temporary)


def _check_usable(
    path: Path, layout: Layout, size: tuple[int, int], options: Options, settings: ConditionSettings
) -> None:
    if 0 in size:
        height, width = options.height or layout.size[0], options.width or layout.size[1]
        raise LayoutError(f"{path}: {width}x{height} is smaller than one token; use --height and --width")
    if not settings.is_plain and len(layout.masks) > MAX_ENTITIES:
        raise LayoutError(too_many_regions(path, len(layout.masks)))
    if settings.is_plain and layout.caption is None:
        raise LayoutError(
            f"{path}: caption is missing, and plain FLUX uses nothing else; add it, or give --lora_ckpt_path"
        )


def _check_files(path: Path, name: str, size: tuple[int, int], options: Options) -> None:
    """Raise LayoutError if a file that is to be written can have no such name, or hold no such image."""
    images = image_paths(name, options)
    panels = [panel_path(image) for image in images] if options.save_panels else []
    overlays = [overlay_path(name, options)] if options.check else []
    try:
        for image in images:
            check_size(size, image)
        for file in (*images, *panels, *overlays):
            check_name(file)
    except UserError as error:
        raise LayoutError(f"{path}: cannot be written as {error}") from None


def image_paths(name: str, options: Options) -> list[Path]:
    """Return the paths of the images of the layout called `name`."""
    count = options.num_images_per_prompt
    names = [name] if count == 1 else [f"{name}_{n}" for n in range(count)]
    return [options.output_path / f"{name}.{options.format}" for name in names]


def panel_path(image: Path) -> Path:
    """Return the path of the panel beside an image."""
    return image.with_name(f"{image.stem}_panel.png")


def overlay_path(name: str, options: Options) -> Path:
    """Return the path of the picture that --check writes for the layout called `name`."""
    return options.output_path / f"{name}_overlay.png"


def _same_names(layouts: Iterable[Surveyed], options: Options) -> dict[tuple[Path, ...], str]:
    """Find the layouts that would write the same file, and say so in a line for each."""
    writers = defaultdict(list)
    blind = takes_capitals_for_small(options.output_path)
    for layout in layouts:
        for image in image_paths(layout.report.name, options):
            for file in (image, panel_path(image)):
                writers[_without_capitals(file) if blind else file].append(layout.path)
    shared: dict[tuple[Path, ...], str] = {}
    for file, paths in writers.items():
        if len(paths) > 1:
            names = " and ".join(map(str, paths))
            shared.setdefault(tuple(paths), f"{names} would both write {file.name}; rename one")
    return shared


def _alike_names(layouts: Iterable[Surveyed], options: Options) -> list[str]:
    """Warn of names that are one where small letters and capitals are the same."""
    if takes_capitals_for_small(options.output_path):
        return []  # an error, see `_same_names`
    alike = defaultdict(set)
    for name in (layout.report.name for layout in layouts):
        alike[_without_capitals(Path(name))].add(name)
    return [
        f"images of {' and '.join(sorted(names))} have names that are one file on macOS and Windows; rename one"
        for names in alike.values()
        if len(names) > 1
    ]


def _without_capitals(path: Path) -> Path:
    return path.with_name(unicodedata.normalize("NFC", path.name).casefold())
