"""Benchmarks of one point, end to end on small copies; and the table of segmenters beside the judge."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from seg2any.commands import one_point, segment_methods
from seg2any.commands.segment_methods import Method
from seg2any.evaluation.shapes.segmenters import JUDGE, table
from seg2any.layout import Layout
from seg2any.segment.at_points import AtPoints
from seg2any.segment.coloring.segmenter import ColoringSegmenter
from seg2any.segment.segmenter import Prompt
from seg2any.system.errors import UserError
from tests.test_coloring import COLORS, planted


class PhotoItself:
    def colors(self, image: np.ndarray, words: str = "") -> np.ndarray:
        return image


@pytest.fixture
def call(monkeypatch, capsys):
    """Return a function that measures with the photo's own colours: words -> (status, output, errors)."""
    module = ModuleType("photo_itself")
    module.add_flags = lambda parser: None
    module.check = lambda given, way: None
    module.open_segmenter = lambda given, machine: ColoringSegmenter(PhotoItself())
    monkeypatch.setitem(sys.modules, "photo_itself", module)
    row = Method("photo_itself", "compares colours", ("points",), "reads no words")
    blind = Method("photo_itself", "sees nothing", ("phrases",), "takes no points")
    rows = {**segment_methods.METHODS, "itself": row, "blind": blind}
    for place in (segment_methods, one_point):
        monkeypatch.setattr(place, "METHODS", rows)

    def run(*words: object) -> tuple[int, str, str]:
        status = one_point.main([*map(str, words), "--device", "cpu"], "one_point")
        told = capsys.readouterr()
        return status, told.out, told.err

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(COLORS[planted()]).resize((160, 120), Image.Resampling.NEAREST).save(folder / f"{name}.png")
    return folder


def boxes_as_coco() -> dict:
    """Two images with a rectangle around the disc and one around the lower bar, in pixels of 160 x 120."""
    rectangles = ((19, 19, 61, 61), (8, 100, 48, 112))
    corners = [[x0, y0, x1, y0, x1, y1, x0, y1] for x0, y0, x1, y1 in rectangles]
    return {
        "images": [
            {"id": n, "file_name": f"{name}.png", "width": 160, "height": 120} for n, name in ((1, "a"), (2, "b"))
        ],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": 10 * image + n, "image_id": image, "category_id": 1, "segmentation": [corner], "iscrowd": 0}
            for image in (1, 2)
            for n, corner in enumerate(corners)
        ],
    }


def test_a_file_of_coco_is_measured_by_areas(call, photos: Path, tmp_path: Path):
    path = tmp_path / "layouts.json"
    path.write_text(json.dumps(boxes_as_coco()))
    status, output, errors = call(photos, path, "--method", "itself", "--area", "small", "medium", "large")
    assert status == 0, errors
    small, medium, large = output.splitlines()
    assert small.startswith("one point, small: mIoU") and small.endswith("2 regions")
    assert float(small.split()[4]) > 0.9  # the bar fills its rectangle
    assert 0.7 < float(medium.split()[4]) < 0.9  # a disc in its square: pi / 4
    assert large == "one point, large: no region has this area"


def test_layouts_of_another_size_are_stretched_over_their_photos(call, photos: Path, tmp_path: Path):
    layout = Layout(np.array([planted() == 1, planted() == 2]), ("a disc", "a ring"), overlap="share")
    (tmp_path / "layouts").mkdir()
    layout.write(tmp_path / "layouts" / "a.npz")
    status, output, errors = call(photos, tmp_path / "layouts", "--method", "itself")
    assert status == 0, errors
    assert float(output.split()[4]) > 0.95 and "2 regions" in output


def test_lost_photos_and_methods_without_points_are_one_line(call, photos: Path, tmp_path: Path):
    (tmp_path / "layouts").mkdir()
    Layout(planted()[None] == 1, ("a disc",)).write(tmp_path / "layouts" / "c.npz")
    for words, message in (
        (["--method", "itself"], "c.npz: no photo c.* in"),
        (["--method", "blind"], "--method blind: takes no points; give one that takes points"),
    ):
        status, _, errors = call(photos, tmp_path / "layouts", *words)
        assert status == 2 and message in errors and len(errors.splitlines()) == 1


def test_the_table_of_segmenters_measures_the_distance_from_the_judge():
    judged = np.array([0.9, 0.5, 0.1])
    values = {
        JUDGE: {"rendered": np.ones(3), "made": judged},
        "an echo": {"rendered": np.ones(3), "made": judged - 0.05},
        "a constant": {"rendered": np.ones(3), "made": np.full(3, 0.5)},
    }
    _, judge, echo, constant, note = table(values).splitlines()
    assert judge.split()[-2:] == ["1.000", "0.500"]
    assert echo.split()[-2:] == ["0.050", "1.00"] and constant.split()[-2:] == ["0.267", "none"]
    assert note.startswith("3 regions")


def test_of_all_regions_those_at_a_point_are_kept_and_those_beside_taken_away():
    regions = np.zeros((2, 8, 12), bool)
    regions[0, 1:4, 1:4] = regions[0, 1:4, 8:11] = True  # one region in two parts
    regions[1, 6:, :] = True
    everything = SimpleNamespace(segment=lambda image, prompt: Layout(regions, ("a", "b"), source="all"))

    def at(*points: tuple[int, int, int]) -> np.ndarray:
        shares = [((x + 0.5) / 12, (y + 0.5) / 8, label) for x, y, label in points]
        return AtPoints(everything).segment(np.zeros((8, 12, 3), np.uint8), Prompt(points=np.array([shares]))).masks[0]

    assert at((2, 2, 1)).sum() == 9 and at((2, 2, 1))[2, 2] and not at((2, 2, 1))[2, 9]
    assert at((2, 2, 1), (9, 2, 1)).sum() == 18 and (at((2, 2, 1), (9, 2, 1), (2, 3, 0)) == at((9, 2, 1))).all()
    assert at((2, 2, 1), (5, 7, 1)).sum() == 9 + 24 and not at((6, 5, 1)).any() and not at((2, 2, -1)).any()
    with pytest.raises(UserError, match="a region at a point: the prompt holds nothing"):
        AtPoints(everything).segment(np.zeros((8, 12, 3), np.uint8), Prompt())
