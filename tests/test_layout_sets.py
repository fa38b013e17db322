"""Layout sets, on small copies in their own formats: layouts, orders, faults, and the metrics on them end to end."""

from __future__ import annotations

import json
import os
import subprocess
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from seg2any.commands import evaluate_measure
from seg2any.data.catalog import open_data_set
from seg2any.data.dataset import SampleError
from seg2any.data.layout_sets.records import box_of, draw_box, from_back_to_front
from seg2any.data.left_out import LeftOutWarning
from seg2any.evaluation import generate_image
from seg2any.evaluation.generated import write_run
from seg2any.evaluation.judges.segmenters import NamedSegmenter
from seg2any.evaluation.report.results import read_run
from seg2any.evaluation.runners.options import AGREEING, DEFAULTS, METRICS, parse_options
from seg2any.evaluation.runners.run import run
from seg2any.layout import Layout
from seg2any.layout.rle import encode_rle
from seg2any.segment.segmenter import Prompt
from seg2any.system.errors import UserError
from tests.golden_root import REPOSITORY, golden_root
from tests.tiny_judges import save_clip, save_sam3, tiny_sam2

SIDE = 32
PIPELINE = golden_root() / "pipeline"
COLOURS = {"red": (200, 35, 35), "blue": (45, 90, 190), "green": (50, 140, 60)}


def photo(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (20, 30, 3), np.uint8))


def png(number: int) -> bytes:
    stream = BytesIO()
    photo(number).save(stream, "PNG")
    return stream.getvalue()


def make_overlaybench(root: Path, n: int = 4) -> dict:
    """Write root/data/hard-*.parquet in two files."""
    rows = []
    for number in range(n):
        annos = [
            {"bbox": [3, 2, 20, 18], "caption": "a red box", "occludes": "2"},
            {"bbox": [10, 5, 28, 19], "caption": "a blue box", "occludes": ""},
        ]
        document = {"prompt": f"two boxes, {number}", "annos": annos}
        image = {"bytes": png(number), "path": None}
        rows.append({"image": image, "annotation": json.dumps(document), "image_id": f"im{number}"})
    (root / "data").mkdir(parents=True)
    for part, some in enumerate((rows[: n // 2], rows[n // 2 :])):
        pq.write_table(pa.Table.from_pylist(some), root / "data" / f"hard-0000{part}-of-00002.parquet")
    return {"root": str(root), "split": "hard"}


def make_sa_z(root: Path, n: int = 4, **more: object) -> dict:
    """Write root/SA-Z.json and root/images, with the first region in front of the second."""
    masks = np.zeros((2, 20, 30), bool)
    masks[0, 2:18, 3:20], masks[1, 5:19, 20:28] = True, True
    records = {}
    for number in range(n):
        path = f"images/sa_000000/sa_{number}.jpg"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        photo(number).save(root / path)
        boxes = ([3, 2, 17, 16], [10, 5, 18, 14])
        texts = ("a red box", "a blue box")
        found = [
            {"id": place, "bbox": box, "caption": text, "segmentation": encode_rle(mask)}
            for place, (box, text, mask) in enumerate(zip(boxes, texts, masks, strict=True))
        ]
        record = {"image_path": path, "prompt": "two boxes", "mask_annotation": found, "pred_order": [[0, 1], [0, 0]]}
        records[f"sa_{number}"] = {**record, **more}
    (root / "SA-Z.json").write_text(json.dumps(records))
    return {"annotation_path": str(root / "SA-Z.json"), "image_root": str(root)}


def make_coco_mig(root: Path, n: int = 4) -> dict:
    """Write root/mig.yaml."""
    entries = {
        f"a photo of a red box and a blue box and a red box, {number}": {
            "a red box": [[0.0, 0.0, 0.5, 1.0], [0.8, 0.5, 1.0, 1.0]], "a blue box": [[0.4, 0.0, 0.75, 0.5]],
            "coco_id": str(number),
        }
        for number in range(n)
    }  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    (root / "mig.yaml").write_text(yaml.safe_dump(entries))
    return {"annotation_path": str(root / "mig.yaml"), "side": SIDE}


MAKERS = {"overlaybench": make_overlaybench, "sa_z": make_sa_z, "coco_mig": make_coco_mig}


def box(left: int, top: int, right: int, bottom: int, size: tuple[int, int] = (20, 30)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize("name", ["overlaybench", "sa_z"])
def test_regions_come_from_the_back_to_the_front_and_hide_each_other(name: str, tmp_path: Path):
    data = open_data_set(name, MAKERS[name](tmp_path))
    assert len(data) == 4 and len({data.key(index) for index in range(4)}) == 4
    layout = data.annotation(1).layout
    assert layout.captions == ("a blue box", "a red box") and layout.overlap == "hide"
    red, blue = box(3, 2, 20, 18), box(10, 5, 28, 19)
    assert np.array_equal(layout.masks, [blue, red]) and np.array_equal(layout.visible, [blue & ~red, red])
    assert layout.caption.startswith("two boxes")
    sample = data[1]
    assert sample.image.shape == (20, 30, 3) and sample.layout.digest() == layout.digest()
    again = open_data_set(name, MAKERS[name](tmp_path / "again"))
    assert again.fingerprint() == data.fingerprint()


def test_sa_z_has_masks_too(tmp_path: Path):
    data = open_data_set("sa_z", {**make_sa_z(tmp_path), "regions": "masks"})
    layout = data.annotation(0).layout
    assert layout.captions == ("a blue box", "a red box") and np.array_equal(layout.masks[1], box(3, 2, 20, 18))
    with pytest.raises(UserError, match="regions is 'shapes'; choose one of"):
        open_data_set("sa_z", {**make_sa_z(tmp_path), "regions": "shapes"})


def test_coco_mig_has_boxes_by_caption_and_no_photos(tmp_path: Path):
    params = make_coco_mig(tmp_path)
    data = open_data_set("coco_mig", params)
    layout = data.annotation(2).layout
    # By size, from the back to the front: half of the picture, 0.35 x 0.5, 0.2 x 0.5.
    assert layout.captions == ("a red box", "a blue box", "a red box") and layout.caption.endswith(", 2")
    assert np.array_equal(layout.masks[1], box(13, 0, 24, 16, (SIDE, SIDE)))
    with pytest.raises(SampleError, match="has no photos"):
        data[0]
    with pytest.raises(UserError, match="holds no sample"):
        open_data_set("coco_mig", {**params, "levels": [2]})
    (tmp_path / "mig.yaml").write_text("a: [")
    with pytest.raises(UserError, match="is not valid YAML"):
        open_data_set("coco_mig", params)


def test_an_order_is_kept_where_it_is_known_and_circles_are_cut_at_the_largest():
    masks = np.stack([box(0, 0, width, 10) for width in (5, 20, 10)])
    assert from_back_to_front(masks) == [1, 2, 0]
    hides = np.zeros((3, 3), bool)
    hides[1, 2] = True
    order = from_back_to_front(masks, hides)
    assert order.index(2) < order.index(1) and sorted(order) == [0, 1, 2]
    hides[2, 0] = hides[0, 1] = True
    assert from_back_to_front(masks, hides)[0] == 1
    assert from_back_to_front(masks, hides | hides.T) == [1, 2, 0]  # each in front of the other says nothing


def test_boxes_in_pixels_and_shares_and_beside_the_image():
    assert box_of("x", [3, 2, 20, 18], "xyxy", (20, 30)) == (3, 2, 20, 18)
    assert box_of("x", [3, 2, 17, 16], "xywh", (20, 30)) == (3, 2, 20, 18)
    assert box_of("x", [0, 0.5, 0.5, 1], "xyxy", (20, 30)) == (0, 10, 15, 20)
    assert draw_box("x", (-5, -5, 2.4, 2.6), (20, 30)).sum() == 2 * 3
    assert draw_box("x", (29.7, 19.9, 35, 40), (20, 30)).sum() == 1
    for bad in ([1, 2, 3], [5, 5, 5, 9], [5, 5, 4, 9], "box", [0, 0, float("inf"), 1], None):
        with pytest.raises(SampleError, match="x: box"):
            box_of("x", bad, "xyxy", (20, 30))
    with pytest.raises(SampleError, match="outside the image"):
        draw_box("x", (40, 0, 50, 10), (20, 30))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred_order": [[0, 1]]}, "pred_order is no matrix of 2 x 2"),
        ({"mask_annotation": "all"}, "mask_annotation is 'all'"),
        ({"mask_annotation": []}, "it has no region"),
        ({"mask_annotation": [{"bbox": [0, 0, 5, 5], "caption": " "}]}, "caption 1 is empty"),
        ({"prompt": 5}, "is 5"),
    ],
)
def test_bad_records_of_sa_z_are_one_line(change: dict, message: str, tmp_path: Path):
    data = open_data_set("sa_z", make_sa_z(tmp_path, **change))
    with pytest.raises(SampleError, match=message):
        data.annotation(0)


def test_photos_of_sa_z_outside_the_root_are_left_out(tmp_path: Path):
    params = make_sa_z(tmp_path / "in", image_path="../../etc/passwd")
    with pytest.raises(UserError, match="no such photo"):
        open_data_set("sa_z", params)


def test_an_annotation_without_boxes_says_what_it_has(tmp_path: Path):
    params = make_overlaybench(tmp_path)
    path = next((tmp_path / "data").iterdir())
    rows = pq.read_table(path).to_pylist()
    rows[0]["annotation"] = json.dumps({"things": []})
    rows[1]["image_id"] = ""
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.warns(LeftOutWarning):
        data = open_data_set("overlaybench", params)
    index = [data.key(index) for index in range(len(data))].index(rows[0]["image_id"])
    with pytest.raises(SampleError, match=r"has none of annos, .* \(it has 'things'\)"):
        data.annotation(index)
    with pytest.raises(UserError, match="no simple-"):
        open_data_set("overlaybench", {"root": str(tmp_path)})


# From images to numbers


class SeesColours:
    """Finds the nearest of three colours."""

    def segment(self, image: np.ndarray, prompt: Prompt) -> Layout:
        names = prompt.phrases or prompt.categories
        nearest = np.stack([np.abs(image - np.int64(tone)).sum(-1) for tone in COLOURS.values()]).argmin(0)
        words = list(COLOURS)
        masks = [nearest == words.index(word) if word else image[..., 0] < 0 for word in map(_colour, names)]
        return Layout(np.stack(masks), names, overlap="share")


def _colour(name: str) -> str | None:
    return next((colour for colour in COLOURS if colour in name), None)


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("judges")
    save_sam3(folder / "sam3")
    save_clip(folder / "clip")
    tiny_sam2().save_pretrained(folder / "sam2")
    return {name: str(folder / name) for name in ("sam3", "clip", "sam2")}


@pytest.mark.parametrize("name", MAKERS)
def test_every_layout_set_is_measured_from_end_to_end(name: str, tmp_path: Path, judges: dict[str, str], capsys):
    """Paint each layout as it is asked for, in place of a model's images."""
    params = MAKERS[name](tmp_path / "data")
    data, out = open_data_set(name, params), tmp_path / "out"
    (out / "group_0").mkdir(parents=True)
    for index in range(len(data)):
        layout = data.annotation(index).layout
        image = np.full((*layout.size, 3), COLOURS["green"], np.uint8)
        for caption, mask in zip(layout.captions, layout.visible, strict=True):
            image[mask] = COLOURS[_colour(caption)]
        Image.fromarray(image).resize((SIDE, SIDE), 0).save(out / "group_0" / f"{data.key(index)}.png")
    told = {"type": name, "params": params, "fingerprint": data.fingerprint()}
    about = {"samples": len(data), "groups": 1, "format": "png", "size": [SIDE, SIDE], "seed": 0, "recipe": {}}
    write_run(out, {"data": told, **about}, overwrite=False)
    flags = [word for flag, path in judges.items() for word in (f"--{flag}", path)]
    options = parse_options([str(out), "--device", "cpu", *flags])
    opened = []

    def open_segmenter(words: list[str], way: str, device: torch.device) -> NamedSegmenter:
        opened.append((words, way))
        return NamedSegmenter("stub", SeesColours())

    run(options, open_segmenter)
    found = read_run(out / "evaluation.json")
    assert set(found.settings["metrics"]) == set(DEFAULTS[name]) and opened == [(["attention"], "phrases")]
    assert found.row("language-guided mIoU").value > 0.85
    assert found.row("language-guided mIoU", "captions of other regions").value < 0.1
    assert found.row("language-guided mIoU", "misleading phrases").value < 0.1
    assert ("language-guided mIoU [real images]" in found.per_sample) == (name != "coco_mig")
    if name == "coco_mig":
        assert found.row("colour leak").value < 0.05 and found.row("concept mIoU").n == 4
    else:
        assert found.row("order of overlapping regions").value == 1 and found.row("overlap mIoU").value > 0.9
        assert found.row("class-agnostic mIoU", "real images")
    assert (out / "evaluation.html").read_text().count("data:image/webp") >= 4 * 3
    lines = (out / "found_masks.jsonl").read_text().splitlines()
    assert len({json.loads(line)["id"] for line in lines}) == len(lines)  # metrics share what was found
    assert "language-guided mIoU" in capsys.readouterr().out


def test_every_default_metric_exists():
    assert {metric for metrics in DEFAULTS.values() for metric in metrics} <= set(METRICS) and set(AGREEING) <= {
        *METRICS
    }


STUB = """#!/usr/bin/env bash
[ "$1" = -m ] && [ "$2" = seg2any ] && shift 4 || shift 2
printf '%s\\n' "$@" > "$NOTES.$(ls "$(dirname "$NOTES")" | grep -c notes)"
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_eval_sh_generates_and_measures_each_layout_set(
    name: str, tmp_path: Path, judges: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    """Let eval.sh say what it would run, and run it here: a process of its own takes seconds to import."""
    params = MAKERS[name](tmp_path / "data", 2)
    (tmp_path / "stub").write_text(STUB)
    (tmp_path / "stub").chmod(0o755)
    own = {"PYTHON": tmp_path / "stub", "NOTES": tmp_path / "notes", "OUT": tmp_path / "out"}
    own |= {"MODEL": PIPELINE / "model", "LORA": PIPELINE / "checkpoint"}
    words = ["--device cpu", *(f"--{flag} {path}" for flag, path in judges.items())]
    own["JUDGES"] = " ".join([*words, f"--segmenter sam3 sam3_model={judges['sam3']} sure_instance=0"])
    flags = ["--num_inference_steps", "1", "--device", "cpu", "--resolution=64", "--model.max_sequence_length=32"]
    flags += ["--model.hard_attn_block_range=[2,4]"]
    flags += [f"--data.val.params.{key}={value}" for key, value in params.items()]
    done = subprocess.run(
        ["bash", str(REPOSITORY / "eval.sh"), name, *flags],
        env={**os.environ, **{key: str(value) for key, value in own.items()}}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    generating, measuring = ((tmp_path / f"notes.{number}").read_text().splitlines() for number in (0, 1))
    monkeypatch.chdir(REPOSITORY)
    assert generate_image.main(generating) == 0
    assert evaluate_measure.main(measuring) == 0
    found = read_run(tmp_path / "out" / "evaluation.json")
    assert set(found.settings["metrics"]) == set(DEFAULTS[name]) and found.row("language-guided mIoU").n == 2
    assert (tmp_path / "out" / "found_masks.jsonl").stat().st_size > 0
