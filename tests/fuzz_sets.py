"""Whole prompts, layout sets, benchmarks, JSON lines and X-SAM files, for `test_reader_fuzz`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from seg2any.data.dataset import SampleError
from seg2any.system.errors import UserError
from tests.fuzz_damage import Kind, damage, damage_ends, damage_header, damage_png, damage_values
from tests.fuzz_layouts import PICTURES, encode

SIZE = (16, 20)
RUNS = {"size": [16, 20], "counts": [20, 30, 270]}
POLYGON = [1, 1, 9, 2, 7.5, 12]


def damage_lines(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage the values of one line of JSON, or any bytes."""
    if rng.integers(4) == 0:
        return damage(data, rng)
    found = data.splitlines(keepends=True)
    number = int(rng.integers(len(found)))
    found[number] = damage_values(found[number], rng) + b"\n"
    return b"".join(found)


def drained(read: Callable[[Path], object]) -> Callable[[Path], None]:
    """Read all layouts of a prompt."""
    return lambda path: [None for _ in read(path)] and None


def samples(open_set: Callable[[Path], object]) -> Callable[[Path], None]:
    """Read all samples of a data set; a faulty sample is refused as a faulty file."""

    def read(path: Path) -> None:
        found = open_set(path)
        found.fingerprint()
        try:
            for index in range(len(found)):
                found.annotation(index)
        except SampleError as error:
            raise UserError(str(error)) from None

    return read


def prompts() -> Iterator[tuple[str, Kind]]:
    from seg2any.layout.convert import read_any

    def read(path: Path) -> None:
        for layout, _ in read_any(path, {}, SIZE):
            assert layout.masks.any(axis=(1, 2)).all()

    rows = [{"id": "cat_1", "bbox": [200, 100, 800, 450], "desc": "a cat"}]
    rows.append({"id": "dog_1", "tgt_bbox": [0, 0, 9, 9], "desc": "a dog"})
    text = f"A meadow with a cat <cat_1>. {json.dumps(rows)}"
    yield "FLUX 3", Kind("prompts/a.txt", text.encode(), damage, read)
    yield "FLUX 3 request", Kind("prompts/b.json", json.dumps({"prompt": text}).encode(), damage_values, read)
    elements = [{"type": "obj", "bbox": [200, 100, 800, 450], "desc": "a cat", "color_palette": ["#ffffff"]}]
    elements.append({"type": "text", "bbox": [0, 0, 100, 1000], "text": "MEADOW", "desc": "white"})
    parts = {"background": "grass", "elements": elements}
    whole = {"high_level_description": "A meadow.", "compositional_deconstruction": parts}
    yield "Ideogram 4", Kind("prompts/c.json", json.dumps(whole).encode(), damage_values, read)
    yield "Ideogram 4 request", Kind("prompts/d.txt", json.dumps({"json_prompt": whole}).encode(), damage_values, read)


def sets(folder: Path) -> Iterator[tuple[str, Kind]]:
    from seg2any.data.layout_sets.coco_mig import COCOMIGDataset
    from seg2any.data.layout_sets.overlaybench import OverLayBenchDataset
    from seg2any.data.layout_sets.sa_z import SAZDataset

    mig = b'"a red and a blue box":\n  a red box: [[0.0, 0.0, 0.5, 1.0]]\n  a blue box: &b [[0.4, 0.0, 0.7, 0.5]]\n'
    mig += b'  a box: *b\n  coco_id: "3"\n'
    yield "COCO-MIG", Kind("mig.yaml", mig, damage, samples(lambda path: COCOMIGDataset(path, 32)))
    (folder / "photos").mkdir()
    (folder / "photos/a.jpg").write_bytes(PICTURES["photo.jpg"]())
    found = [{"bbox": [3, 2, 9, 9], "caption": "a", "segmentation": RUNS} for _ in range(2)]
    whole = {"a": {"image_path": "a.jpg", "prompt": "b", "mask_annotation": found, "pred_order": [[0, 1], [0, 0]]}}
    for regions in ("boxes", "masks"):
        read = samples(lambda path, regions=regions: SAZDataset(path, folder / "photos", regions))
        yield f"SA-Z {regions}", Kind(f"SA-Z-{regions}.json", json.dumps(whole).encode(), damage_values, read)
    annos = [{"bbox": [3, 2, 20, 16], "caption": "a", "occludes": "2"}, {"bbox": [1, 5, 18, 14], "caption": "b"}]
    row = {"image": {"bytes": PICTURES["rgb.png"](), "path": None}, "annotation": json.dumps({"annos": annos})}
    (folder / "bench").mkdir()
    path = folder / "bench/simple-0.parquet"
    pq.write_table(pa.Table.from_pylist([row | {"image_id": str(number)} for number in range(3)]), path)
    read = samples(lambda path: OverLayBenchDataset(path.parent))
    yield "OverLayBench", Kind("bench/simple-0.parquet", path.read_bytes(), damage_ends, read)

    def read_annotation(path: Path) -> None:
        table = pa.Table.from_pylist(
            [row | {"annotation": path.read_bytes().decode(errors="replace"), "image_id": "a"}]
        )
        (folder / "bench2").mkdir(exist_ok=True)
        pq.write_table(table, folder / "bench2/simple-0.parquet")
        read(folder / "bench2/simple-0.parquet")

    yield "OverLayBench row", Kind("row.json", row["annotation"].encode(), damage_values, read_annotation)


def lines(folder: Path) -> Iterator[tuple[str, Kind]]:
    from seg2any.annotate.caption_file import open_captions
    from seg2any.annotate.journal import Journal
    from seg2any.annotate.rules import Look
    from seg2any.annotate.stages import DROPPED, KEPT, Outcome
    from seg2any.evaluation.judges.kept import Found, KeptMasks
    from seg2any.segment.mask_head import Learned, MaskHead, read_head, read_learned, save_learned

    told = [{"image": f"{name}.jpg", "caption": "all", "regions": {"1": "a", "2": "b"}} for name in "ab"]
    whole = "".join(json.dumps(line) + "\n" for line in told).encode()
    yield "lines of captions", Kind("captions.jsonl", whole, damage_lines, open_captions)
    settings = {"masks": "sam", "captions": ["x", 3]}
    journal = Journal(folder / "made.journal", settings)
    journal.add_looks({name: Look(SIZE, 5, 99) for name in "abc"})
    journal.add(Outcome("a", KEPT, record={"name": "a", "regions": [[1, "x"]]}))
    journal.add(Outcome("b", DROPPED, "small", "9"))

    def read_journal(path: Path) -> None:
        found = Journal(path, settings)
        list(found.outcomes([key for key in "abc" if found.state(key)]))

    yield "journal", Kind("journal.jsonl", (folder / "made.journal").read_bytes(), damage_lines, read_journal)
    image = np.zeros((4, 4, 3), np.uint8)
    kept = KeptMasks(folder / "made_masks.jsonl", "judge")
    for name in "ab":
        kept.get(image, [name], lambda: Found(np.eye(4, dtype=bool)[None], np.array([0.5])))

    def read_kept(path: Path) -> None:
        found = KeptMasks(path, "judge")
        for name in "ab":
            found.get(image, [name], lambda: Found(np.zeros((0, 4, 4), bool), None))

    yield "found masks", Kind("found_masks.jsonl", (folder / "made_masks.jsonl").read_bytes(), damage_lines, read_kept)
    (folder / "head").mkdir()
    save_learned(folder / "head", Learned((1, 3), "background", 4), MaskHead(4))

    def read_mask_head(path: Path) -> None:
        learned = read_learned(path.parent)
        if learned is not None:
            read_head(path.parent, learned)

    for name, how in (("masks.json", damage_values), ("masks.safetensors", damage_header)):
        yield f"head {name}", Kind(f"head/{name}", (folder / "head" / name).read_bytes(), how, read_mask_head)


def words(folder: Path) -> Iterator[tuple[str, Kind]]:
    from seg2any.evaluation.labels.open_sets import OPEN_SETS
    from seg2any.evaluation.words import sets as read

    root = folder / "words"
    (root / "reasoning").mkdir(parents=True)
    (root / "0.png").write_bytes(PICTURES["rgb.png"]())
    (root / "reasoning/0.jpg").write_bytes(PICTURES["photo.jpg"]())
    image = {"id": 1, "file_name": "0.png", "height": 16, "width": 20, "caption": "a cat"}
    notes = [{"image_id": 1, "segmentation": RUNS}, {"image_id": 1, "segmentation": [POLYGON]}]
    marked = {"images": [image], "annotations": notes}

    def all_of(photos: Iterator) -> None:
        for photo in photos:
            photo.read()

    yield (
        "RefCOCO",
        Kind(
            "words/refs.json", json.dumps(marked).encode(), damage_values, lambda p: all_of(read.read_refcoco(root, p))
        ),
    )
    shape = {"label": "target", "points": [[1, 1], [9, 2], [7, 12]]}
    asked = {"text": ["what?"], "is_sentence": True, "shapes": [shape, shape | {"label": "ignore"}]}
    yield (
        "ReasonSeg",
        Kind(
            "words/reasoning/0.json",
            json.dumps(asked).encode(),
            damage_values,
            lambda p: all_of(read.read_reasoning(p.parent)),
        ),
    )
    told = {"annotations": [{"image_id": 1, "caption": "a and b", "labels": ["a", "b"]}]}
    for name, content in (("masks", marked), ("told", told)):
        (root / f"{name}.json").write_text(json.dumps(content))
        yield (
            f"GranD-f {name}",
            Kind(
                f"words/{name}.json",
                json.dumps(content).encode(),
                damage_values,
                lambda p: all_of(read.read_grounded(root, root / "masks.json", root / "told.json")),
            ),
        )
    parts = [{"id": 255, "category_id": 7, "iscrowd": 0}]
    panoptic = {"images": [image], "annotations": [{"image_id": 1, "file_name": "0.png", "segments_info": parts}]}
    panoptic["categories"] = [{"id": 7, "name": "cat", "isthing": 1}]

    def read_panoptic(path: Path) -> None:
        read.read_categories(path)
        all_of(read.read_panoptic(root, path, root))

    yield "panoptic words", Kind("words/panoptic.json", json.dumps(panoptic).encode(), damage_values, read_panoptic)
    voc = folder / "voc"
    for name in ("SegmentationClass/a.png", "JPEGImages/a.jpg", "ImageSets/Segmentation/val.txt"):
        (voc / name).parent.mkdir(parents=True)
        (voc / name).write_bytes(PICTURES["photo.jpg"]() if name.endswith("jpg") else b"")

    def read_open_set(path: Path) -> None:
        for _, labels in OPEN_SETS["voc20"].pairs(voc):
            OPEN_SETS["voc20"].read(labels)

    labels = encode(Image.fromarray(np.arange(320, dtype=np.uint8).reshape(16, 20) % 5), "PNG")
    read_map = OPEN_SETS["voc20"].read
    yield "label map", Kind("voc/SegmentationClass/a.png", labels, damage_png, read_map)
    yield "list of pictures", Kind("voc/ImageSets/Segmentation/val.txt", b"a\n", damage, read_open_set)


def xsam(folder: Path) -> Iterator[tuple[str, Kind]]:
    import torch

    from seg2any.segment.xsam.config import XSamConfig
    from seg2any.segment.xsam.convert import compare, config_of, open_published
    from seg2any.segment.xsam.folder import read_config
    from seg2any.system.headers import read_headers
    from tests.tiny_xsam import config

    whole = json.dumps(config()).encode()
    yield "X-SAM folder", Kind("xsam/config.json", whole, damage_values, lambda p: read_config(p.parent, XSamConfig))
    tensors = {
        "segmentor.decoder.queries_features.weight": torch.ones(3, 4),
        "llm.model.embed_tokens.weight": torch.ones(9, 2),
    }
    torch.save({"state_dict": tensors}, folder / "whole.bin")
    (folder / "xsam_published").mkdir()

    def read_published(path: Path) -> None:
        shapes = {name: tuple(value.shape) for name, value in open_published(path).items()}
        config_of(shapes, str(path))
        assert "\n" not in compare(shapes, {"a": (1,)}).details()

    torch.save(tensors, folder / "plain.bin")
    whole = (folder / "whole.bin").read_bytes()
    yield "X-SAM weights", Kind("xsam_published/pytorch_model.bin", whole, damage, read_published)
    whole = (folder / "plain.bin").read_bytes()
    yield "pickled headers", Kind("xsam_published/headers.bin", whole, damage, lambda p: read_headers([p]))
