"""COCO, SA-1B and panoptic files: masks by hand, and contradictions between masks and what stands beside them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seg2any.layout import Layout
from seg2any.layout.checks import LayoutError, LayoutWarning
from seg2any.layout.polygons import draw_polygons
from tests.test_layout_pictures import encode_rle

HEIGHT, WIDTH = 20, 30
IMAGE = {"id": 7, "width": WIDTH, "height": HEIGHT, "file_name": "x.jpg"}
BOX = np.zeros((HEIGHT, WIDTH), bool)
BOX[5:15, 10:26] = True


def read(folder: Path, document: dict) -> tuple[Layout, list[str]]:
    (folder / "x.json").write_text(json.dumps(document))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layout = Layout.read(folder / "x.json")
    return layout, [str(one.message) for one in caught if issubclass(one.category, LayoutWarning)]


def coco(*annotations: dict, **more: object) -> dict:
    return {"images": [IMAGE], "annotations": list(annotations), **more}


def entry(**change: object) -> dict:
    """Annotate BOX with everything that stands beside a mask, all of it right."""
    own = {"id": 1, "image_id": 7, "segmentation": encode_rle(BOX, True), "text": "a box"}
    return {**own, "bbox": [10, 5, 16, 10], "area": 160, "iscrowd": 0, "category_id": 3, **change}


class TestPolygons:
    def test_a_pixel_is_inside_if_its_centre_is(self):
        corners = {(0, 0, 3, 0, 3, 2, 0, 2): 6, (0.6, 0, 3, 0, 3, 2, 0.6, 2): 4, (0.4, 0, 3.6, 0, 3.6, 2, 0.4, 2): 8}
        for polygon, pixels in corners.items():
            assert draw_polygons("here", [polygon], (4, 5)).sum() == pixels
        triangle = draw_polygons("here", [[0, 0, 10, 0, 0, 10]], (10, 10))
        rows, columns = np.mgrid[:10, :10] + 0.5
        assert (triangle == (rows + columns < 10)).all()

    def test_random_polygons_equal_a_test_of_every_centre(self):
        rng = np.random.default_rng(0)
        for _ in range(40):
            points = rng.uniform(-5, 35, (rng.integers(3, 9), 2))
            rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
            inside = np.zeros((HEIGHT, WIDTH), bool)
            for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
                crosses = (y0 <= rows) != (y1 <= rows)
                inside ^= crosses & (columns >= x0 + (rows - y0) * (x1 - x0) / (y1 - y0))
            if inside.any():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = draw_polygons("here", [points.ravel().tolist()], (HEIGHT, WIDTH))
                assert (found == inside).all()

    def test_a_disc_has_its_area(self):
        angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
        disc = np.stack([150 + 80 * np.cos(angles), 120 + 80 * np.sin(angles)], 1)
        assert draw_polygons("here", [disc.ravel().tolist()], (240, 300)).sum() == pytest.approx(np.pi * 6400, rel=2e-3)

    def test_parts_are_united_and_read_from_the_file(self, tmp_path: Path):
        parts = [[2, 2, 6, 2, 6, 8, 2, 8], [4, 4, 12, 4, 12, 6, 4, 6]]  # 4 x 6 and 8 x 2, sharing 2 x 2
        document = coco(entry(segmentation=parts, bbox=[2, 2, 10, 6], area=36))
        layout, told = read(tmp_path, document)
        assert layout.masks.sum() == 24 + 16 - 4 and layout.size == (HEIGHT, WIDTH) and told == []
        layout, _ = read(tmp_path, coco(entry(segmentation=parts[0], bbox=[2, 2, 4, 6], area=24)))
        assert layout.masks.sum() == 24, "one polygon without the list around it"

    @pytest.mark.parametrize(
        ("segmentation", "said"),
        [
            ([], "empty"),
            ([[1, 1, 5, 5]], "3 points"),
            ([[1, 1, 5, 5, 1, 5, 3]], "3 points"),
            ([[0.1, 0.1, 0.4, 0.1, 0.4, 0.4]], "0 to 1"),
            ([[100, 100, 120, 100, 120, 120]], "no pixel"),
            ([["a", 1, 2, 3, 4, 5]], "3 points"),
        ],
    )
    def test_others_are_refused(self, segmentation: list, said: str, tmp_path: Path):
        with pytest.raises(LayoutError, match=rf"annotations\[0\].*{said}"):
            read(tmp_path, coco(entry(segmentation=segmentation)))

    def test_without_a_size_and_out_of_the_image(self, tmp_path: Path):
        square = [[20, 5, 40, 5, 40, 15, 20, 15]]
        with pytest.raises(LayoutError, match="width and height"):
            read(tmp_path, {"annotations": [entry(segmentation=square)]})
        layout, told = read(tmp_path, coco(entry(segmentation=square, bbox=[20, 5, 10, 10], area=100)))
        assert layout.masks.sum() == 100 and len(told) == 1 and "30x20" in told[0]


class TestContradictions:
    def test_a_file_without_any_is_read_without_a_word(self, tmp_path: Path):
        for compressed in (True, False):
            layout, told = read(tmp_path, coco(entry(segmentation=encode_rle(BOX, compressed), iscrowd=1)))
            assert (layout.masks[0] == BOX).all() and layout.captions == ("a box",) and told == []
            assert layout.overlap == "share"

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"bbox": [10, 5, 26, 15]}, "bbox"),  # corners instead of width and height
            ({"bbox": [5, 10, 10, 16]}, "bbox"),
            ({"area": 320}, "area"),
            ({"area": 80.5}, "area"),
        ],
    )
    def test_boxes_and_areas_are_compared(self, change: dict, said: str, tmp_path: Path):
        layout, told = read(tmp_path, coco(entry(**change)))
        assert (layout.masks[0] == BOX).all() and len(told) == 1 and f"annotations[0]: {said}" in told[0]

    def test_sizes_are_compared(self, tmp_path: Path):
        for mask, said in ((BOX.T, "exchanged"), (BOX[:-1], "30x19")):
            document = coco(entry(segmentation=encode_rle(mask, True), bbox=None, area=None))
            with pytest.raises(LayoutError, match=f"30x20.*{said}|{said}.*30x20"):
                read(tmp_path, document)
        document = {"image": {"image_id": 7, "width": HEIGHT, "height": WIDTH}, "annotations": [entry()]}
        with pytest.raises(LayoutError, match="exchanged"):
            read(tmp_path, document)

    def test_annotations_of_other_images_are_left_out(self, tmp_path: Path):
        other = entry(image_id=8, text="not here")
        layout, told = read(tmp_path, coco(other, entry(), other))
        assert read(tmp_path, coco(entry(image_id="7")))[1] == [], "some writers quote numbers"
        assert layout.captions == ("a box",) and len(told) == 1 and "left out: 2" in told[0] and "image_id 8" in told[0]
        with pytest.raises(LayoutError, match="image_id 7"):
            read(tmp_path, coco(other))
        with pytest.raises(LayoutError, match="2 images"):
            read(tmp_path, {"annotations": [entry(), other]})

    def test_categories_name_what_has_no_text(self, tmp_path: Path):
        unnamed = {key: value for key, value in entry().items() if key != "text"}
        categories = [{"id": 2, "name": "cat"}, {"id": 3, "name": "box", "supercategory": "thing"}]
        assert read(tmp_path, coco(unnamed, categories=categories))[0].captions == ("box",)
        with pytest.raises(LayoutError, match="category_id 3"):
            read(tmp_path, coco(unnamed, categories=categories[:1]))
        with pytest.raises(LayoutError, match="text"):
            read(tmp_path, coco(unnamed))
        with pytest.raises(LayoutError, match="two names"):
            read(tmp_path, coco(unnamed, categories=[*categories, {"id": 3, "name": "crate"}]))


class TestPanoptic:
    NUMBERS = {"sky": 300, "sea": 70000}

    def document(self, folder: Path, inside: bool = False, **change: object) -> dict:
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        for number, rows in zip(self.NUMBERS.values(), (slice(0, 8), slice(8, 18)), strict=True):
            pixels[rows] = number % 256, number // 256 % 256, number // 65536
        place = folder / "x" if inside else folder
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / "segments.png")
        segments = [
            {"id": number, "category_id": n, "iscrowd": 0, "area": area, "bbox": [0, top, WIDTH, height]}
            for n, (number, area, top, height) in enumerate(
                zip(self.NUMBERS.values(), (240, 300), (0, 8), (8, 10), strict=True)
            )
        ]
        categories = [{"id": n, "name": name, "isthing": 0} for n, name in enumerate(self.NUMBERS)]
        annotation = {"image_id": 7, "file_name": "segments.png", "segments_info": segments, **change}
        return {"images": [IMAGE], "annotations": [annotation], "categories": categories}

    @pytest.mark.parametrize("inside", [False, True])
    def test_segments_are_read(self, inside: bool, tmp_path: Path):
        layout, told = read(tmp_path, self.document(tmp_path, inside))
        assert layout.masks.sum((1, 2)).tolist() == [240, 300] and layout.captions == ("sky", "sea") and told == []
        assert Layout.find(tmp_path) in ([tmp_path], [tmp_path / "x.json"])

    def test_one_entry_alone_is_read(self, tmp_path: Path):
        document = self.document(tmp_path)
        alone = {**document["annotations"][0], "categories": document["categories"]}
        layout, told = read(tmp_path, alone)
        assert layout.masks.sum((1, 2)).tolist() == [240, 300] and told == []

    def test_contradictions_are_told(self, tmp_path: Path):
        document = self.document(tmp_path)
        segments = document["annotations"][0]["segments_info"]
        segments[0]["area"] = 900
        assert "area is 900" in read(tmp_path, document)[1][0]
        del segments[0]
        assert "300 (240 pixels)" in read(tmp_path, document)[1][0]
        segments[0]["id"] = 5
        with pytest.raises(LayoutError, match="id 5"):
            read(tmp_path, document)
        with pytest.raises(LayoutError, match="file_name"):
            read(tmp_path, self.document(tmp_path, file_name=None))
        (tmp_path / "segments.png").unlink()
        with pytest.raises(LayoutError, match=r"segments\.png"):
            read(tmp_path, {**document, "annotations": [{**document["annotations"][0]}]})


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("prompt", "caption"),
        ("captoin", "caption"),
        ("Caption", "caption"),
        ("sede", "seed"),
        ("regions", "segments_info"),
    ],
)
def test_keys_that_are_not_read_are_told_with_their_neighbour(key: str, meant: str, tmp_path: Path):
    document = {"segments_info": [{"segmentation": encode_rle(BOX, True), "text": "a"}], key: "a box"}
    layout, told = read(tmp_path, document)
    assert layout.caption is None and len(told) == 1 and repr(key) in told[0] and f"did you mean {meant}" in told[0]


def test_keys_of_regions_and_comments(tmp_path: Path):
    region = {"segmentation": encode_rle(BOX, True), "text": "a", "_note": 1, "weight": 2}
    _, told = read(tmp_path, {"segments_info": [region, {**region, "maks": "x.png"}], "_made_by": "hand"})
    assert len(told) == 1 and "regions: nothing reads 'weight'" in told[0] and "did you mean mask" in told[0]
    assert "_note" not in told[0] and "_made_by" not in told[0]
    with pytest.raises(LayoutError, match="'label' is not read: call it text"):
        read(tmp_path, {"segments_info": [{"segmentation": encode_rle(BOX, True), "label": "a"}]})
    with pytest.raises(LayoutError, match="'segmentaton' is not read: call it segmentation"):
        read(tmp_path, {"segments_info": [{"segmentaton": encode_rle(BOX, True), "text": "a"}]})
    with pytest.raises(LayoutError, match="'segment_info' is not read: call it segments_info"):
        read(tmp_path, {"segment_info": [region]})
    _, told = read(tmp_path, {"segments_info": [region], "annotations": [entry()]})
    assert any("annotations" in line for line in told)


class TestSeveralImages:
    """Each image of a file is a layout of its own, found by the file and read by NAME.json#ID."""

    IMAGES = (
        {**IMAGE, "caption": "its own"},
        {"id": 8, "width": 6, "height": 4, "file_name": "val/y.z.jpg", "seed": 3},
        {"id": 9, "width": 6, "height": 4, "file_name": "nothing.jpg"},
    )
    SQUARE = {"image_id": 8, "segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]], "category_id": 3}

    def write(self, folder: Path, *images: dict, **change: object) -> Path:
        document = {"images": list(images or self.IMAGES), "annotations": [self.SQUARE, entry(), self.SQUARE]}
        names = {"categories": [{"id": 3, "name": "square"}], "caption": "of the file"}
        (folder / "all.json").write_text(json.dumps(document | names | change))
        return folder / "all.json"

    def test_a_file_gives_a_layout_of_each_image_with_annotations(self, tmp_path):
        file = self.write(tmp_path)
        with pytest.warns(LayoutWarning, match=r"images without annotations are left out: 1 \(9\)"):
            paths = Layout.find(file)
        assert paths == [tmp_path / "all.json#7", tmp_path / "all.json#8"] and Layout.find(paths[1]) == paths[1:]
        first, second = map(Layout.read, paths)
        assert (first.name, first.captions, first.caption, first.seed) == ("x", ("a box",), "its own", None)
        assert np.array_equal(first.masks[0], BOX)
        assert (second.name, second.captions, second.caption) == ("y.z", ("square", "square"), "of the file")
        expected = np.zeros((4, 6), bool)
        expected[1:3, 1:3] = True
        assert second.seed == 3 and second.overlap == "share" and (second.masks == expected).all()

    def test_messages_name_the_image_and_the_place_in_the_file(self, tmp_path):
        file = self.write(tmp_path, annotations=[self.SQUARE, entry(), {"image_id": 7, "segmentation": []}])
        for id, said in (
            ("7", r"all.json#7: annotations\[2\]"),
            ("5", "no image has the id '5'; the ids are 7, 8, 9"),
            ("9", "no annotations"),
        ):
            with pytest.raises(LayoutError, match=said):
                Layout.read(f"{file}#{id}")
        with pytest.raises(LayoutError, match="images has 3 entries; give all.json#ID"):
            Layout.read(file)
        with pytest.raises(LayoutError, match="no such file"):
            Layout.find(tmp_path / "other.json#7")

    @pytest.mark.parametrize(
        ("images", "said"),
        [
            ([{"id": 7}, {"id": 7}], r"images\[1\] has the id 7 of an earlier image"),
            ([{"id": 7}, {}], r"images\[1\] has the id None; number the images"),
            ([{"id": "a/b"}, {"id": 7}], r"images\[0\] has the id 'a/b'; number the images"),
        ],
    )
    def test_ids_that_name_no_image_are_refused(self, tmp_path, images, said):
        file = self.write(tmp_path, *images)
        for path in (*Layout.find(file), f"{file}#7"):
            with pytest.raises(LayoutError, match="images has 2 entries" if path == file else said):
                Layout.read(path)

    def test_images_of_one_name_have_their_id_behind_it(self, tmp_path):
        images = [{**IMAGE, "file_name": "a/1.jpg"}, {**self.IMAGES[1], "file_name": "b\\1.jpg"}]
        assert [Layout.read(path).name for path in Layout.find(self.write(tmp_path, *images))] == ["1_7", "1_8"]

    def test_annotations_alone_are_told_apart_and_a_changed_file_is_read_again(self, tmp_path):
        file = self.write(tmp_path, images=[], annotations=[entry(), entry(image_id=8, text="b"), entry(text="c")])
        assert [Layout.read(path).captions for path in Layout.find(file)] == [("a box", "c"), ("b",)]
        self.write(tmp_path, images=[], annotations=[entry(), entry(image_id=8, text="changed")])
        assert Layout.read(f"{file}#8").captions == ("changed",) and Layout.read(f"{file}#8").name == "8"

    def test_panoptic_pictures_of_several_images_are_found(self, tmp_path):
        (tmp_path / "all").mkdir()
        entries = []
        for id in (7, 8):
            Image.fromarray(np.full((4, 6, 3), (id, 0, 0), np.uint8)).save(tmp_path / "all" / f"{id}.png")
            entries.append({"image_id": id, "file_name": f"{id}.png", "segments_info": [{"id": id, "category_id": 3}]})
        images = [{"id": id, "file_name": f"{id}.jpg", "width": 6, "height": 4} for id in (7, 8)]
        layouts = [Layout.read(path) for path in Layout.find(self.write(tmp_path, *images, annotations=entries))]
        assert [layout.name for layout in layouts] == ["7", "8"] and all(layout.masks.all() for layout in layouts)
