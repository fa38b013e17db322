"""Damage files of every kind that is read: each gives its content or one clear line, in little time and memory.

Whole files are damaged at random (seeded): bytes of pictures, archives and tables, values of JSON documents. Under the
strict limits, which are those of servers, a file takes 2 seconds of the processor and 500 MB at most. 500 files are
tried in every run of the tests, 10,000 with the long ones, which print a summary.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import mmap
import time
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from seg2any.layout import Layout
from seg2any.layout.checks import LayoutError
from seg2any.system.errors import UserError
from seg2any.system.limits import STRICT, limited
from tests.golden_root import REPOSITORY

QUICK, LONG = 500, 10_000  # files
SLOW, LARGE = 2.0, 500 << 20  # seconds of the processor and bytes for one file
WORDS = [
    None,
    True,
    -1,
    0,
    1,
    63,
    2**31,
    2**63,
    10**400,
    0.5,
    1e999,
    -0.0,
    "",
    " ",
    "x",
    "\ud800",
    "\0",
    "../x",
    "a\nb",
    "\u00e9" * 200,
]
WORDS += [[], [[]], {}, {"a": {}}, [255, 0, 0], [0.0, 0, 0], ["255", 0, 0], [-1, 0, 0], [1] * 1000, "0" * 300, "o" * 40]
KEYS = ["segments_info", "annotations", "color", "mask", "segmentation", "text", "caption", "seed", "size", "counts"]


def pixels() -> np.ndarray:
    picture = np.zeros((16, 20, 3), dtype=np.uint8)
    picture[2:9, 3:12], picture[8:14, 10:19] = [255, 0, 0], [0, 0, 255]
    return picture


def document() -> dict:
    return {
        "caption": "all",
        "seed": 4,
        "segments_info": [
            {"color": [255, 0, 0], "text": "a"},
            {"mask": "mask.png", "text": "b"},
            {"segmentation": {"size": [16, 20], "counts": [20, 30, 270]}, "text": "c"},
            {"segmentation": {"size": [16, 20], "counts": "S28800JJ264000000000000000000]1"}, "text": "d"},
        ],
    }


def encode(picture: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind)
    return stream.getvalue()


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage data one to four times: change a byte, cut out, double or overwrite a piece, cut the end."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not data:
            break
        at, length = int(rng.integers(len(data))), int(rng.integers(1, 9))
        action = rng.integers(6)
        if action <= 1:
            data[at] ^= 1 << int(rng.integers(8))
        elif action == 2:
            del data[at : at + length]
        elif action == 3:
            data[at:at] = data[at : at + length]
        elif action == 4:
            data[at : at + length] = rng.bytes(length)
        else:
            del data[at:]
    return bytes(data)


def repair_png(data: bytes) -> bytes:
    """Correct the checksums of damaged chunks, so that the damage reaches the decoder behind them."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if at + 12 + length > len(data):
            break
        body = data[at + 4 : at + 8 + length]
        out += data[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        at += 12 + length
    return out + data[at:]


PICTURES: dict[str, Callable[[], bytes]] = {
    "rgb.png": lambda: encode(Image.fromarray(pixels()), "PNG"),
    "palette.png": lambda: encode(Image.fromarray(pixels()).convert("P"), "PNG"),
    "rgba.png": lambda: encode(Image.fromarray(pixels()).convert("RGBA"), "PNG"),
    "grey.png": lambda: encode(Image.fromarray(pixels()).convert("L"), "PNG"),
    "deep.png": lambda: encode(Image.fromarray(pixels()[..., 0].astype(np.uint16) * 257), "PNG"),
    "bit.png": lambda: encode(Image.fromarray(pixels()[..., 0] > 0), "PNG"),
    "photo.jpg": lambda: encode(Image.fromarray(pixels()), "JPEG"),
    "flat.bmp": lambda: encode(Image.fromarray(pixels()), "BMP"),
    "lossless.webp": lambda: encode(Image.fromarray(pixels()), "WEBP"),
    "tagged.tif": lambda: encode(Image.fromarray(pixels()), "TIFF"),
}


def npz_of(save: Callable) -> bytes:
    stream = io.BytesIO()
    save(stream, masks=pixels().transpose(2, 0, 1)[::2] > 0, captions=["a", "b"], caption="c", seed=3)
    return stream.getvalue()


def read_layout(path: Path) -> None:
    layout = Layout.read(path, snap_colors=path.stat().st_size % 2 == 0)
    assert layout.masks.any(axis=(1, 2)).all() and len(layout.captions) == len(layout.masks) > 0


def beside(name: str) -> Callable[[Path], None]:
    """Read the layout that lies beside a damaged picture."""
    return lambda path: read_layout(path.with_name(name))


def damage_png(data: bytes, rng: np.random.Generator) -> bytes:
    data = damage(data, rng)
    return repair_png(data) if rng.integers(2) else data


def damage_values(data: bytes, rng: np.random.Generator) -> bytes:
    """Change values of a JSON text, or bytes of it."""
    if rng.integers(4) == 0:
        return damage(data, rng)
    mutant = json.loads(data)
    for _ in range(rng.integers(1, 4)):
        mutate(mutant, rng)
    return json.dumps(mutant).encode()


def damage_header(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage the JSON at the beginning of a safetensors file, and mostly correct its length."""
    length = int.from_bytes(data[:8], "little")
    head = damage_values(data[8 : 8 + length], rng)
    said = len(head) if rng.integers(8) else int(rng.integers(2**40))
    return said.to_bytes(8, "little") + head + data[8 + length :]


def damage_metadata(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage the header of a file of adapters, or only peft's configuration inside it."""
    if rng.integers(3) == 0:
        return damage_header(data, rng)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    told = header["__metadata__"]
    told["lora_adapter_metadata"] = damage_values(told["lora_adapter_metadata"].encode(), rng).decode(errors="replace")
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + data[8 + length :]


def damage_ends(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file anywhere, but every other time in its last 500 bytes, where parquet and zip keep what they hold."""
    if rng.integers(2):
        return damage(data, rng)
    return data[:-500] + damage(data[-500:], rng)


@dataclass(frozen=True)
class Kind:
    """A kind of file: its place below a folder, what a whole one holds, how it is damaged and read."""

    place: str
    whole: bytes
    damage: Callable[[bytes, np.random.Generator], bytes]
    read: Callable[[Path], object]


def pictures() -> Iterator[tuple[str, Kind]]:
    for name, make in PICTURES.items():
        suffix = Path(name).suffix
        how = damage_png if suffix == ".png" else damage
        yield f"colour map {name}", Kind(f"map{suffix}", make(), how, read_layout)
        yield f"mask {name}", Kind(f"mask{suffix}", make(), how, beside(f"one{suffix}.json"))


def layouts() -> Iterator[tuple[str, Kind]]:
    yield "layout", Kind("all.json", json.dumps(document()).encode(), damage_values, read_layout)
    polygon = {"segmentation": [[1, 1, 9, 2, 7.5, 12]], "category_id": 1, "bbox": [1, 1, 8, 11], "image_id": 3}
    coco = {"annotations": [polygon], "images": [{"id": 3, "width": 20, "height": 16}]}
    coco["categories"] = [{"id": 1, "name": "cat"}]
    yield "COCO", Kind("coco.json", json.dumps(coco).encode(), damage_values, read_layout)
    panoptic = {"annotations": [{"file_name": "all.png", "segments_info": [{"id": 255, "text": "a"}]}]}
    yield "panoptic", Kind("panoptic.json", json.dumps(panoptic).encode(), damage_values, read_layout)
    yield "npz", Kind("a.npz", npz_of(np.savez), damage_ends, read_layout)
    yield "compressed npz", Kind("b.npz", npz_of(np.savez_compressed), damage_ends, read_layout)


def tables(folder: Path) -> Iterator[tuple[str, Kind]]:
    from seg2any.data.bucket_map import SCHEMA as MAP
    from seg2any.data.bucket_map import BucketMap, Origin, write_tables
    from seg2any.data.caption_table import CaptionTable
    from seg2any.data.picture_index import check_pictures

    regions = [[{"anno_id": n, "caption": "b"}] for n in range(40)]
    names = [f"{n}.jpg" for n in range(40)]
    texts = {"imagename": names, "image_group": ["g"] * 40, "caption": ["a"] * 40}
    pq.write_table(pa.table({**texts, "segments_info": regions}), folder / "captions.parquet")

    def read_captions(path: Path) -> None:
        table = CaptionTable(path, None)
        for number in range(len(table.columns)):
            table.row(number)

    yield "captions", Kind("captions.parquet", (folder / "captions.parquet").read_bytes(), damage_ends, read_captions)
    origin = Origin(40, "x", "y", 64, 1, "stretch", 16, 32, 10)
    numbers = {field.name: ["k"] * 40 if field.name == "key" else [1] * 40 for field in MAP}
    write_tables(folder / "map.parquet", origin, [pa.table(numbers, MAP)])
    whole = (folder / "map.parquet").read_bytes()
    yield "bucket map", Kind("map.parquet", whole, damage_ends, lambda path: BucketMap.read(path, origin))
    (folder / "one.txt").write_bytes(b"x")
    check_pictures([folder / "one.txt"], lambda path: (1, 1), "rule", folder / "index.parquet")
    whole = (folder / "index.parquet").read_bytes()

    def read_index(path: Path) -> None:
        check_pictures([folder / "one.txt"], lambda path: (1, 1), "rule", path)

    yield "picture index", Kind("index.parquet", whole, damage_ends, read_index)


def models(folder: Path) -> Iterator[tuple[str, Kind]]:
    import gguf

    from seg2any.adapters.card import AdapterCard
    from seg2any.adapters.files import save_adapters
    from seg2any.adapters.lora_file import read_lora
    from seg2any.bases.flux1.recognise import refuse_other_models
    from seg2any.system.headers import read_headers
    from seg2any.system.tensor_file import open_tensor_file
    from seg2any.system.weights import weights_fingerprint
    from tests.tiny_flux import adapted, tiny

    save_adapters(adapted(2, 2.0), folder / "lora", AdapterCard())
    whole, model = (folder / "lora/default/pytorch_lora_weights.safetensors").read_bytes(), tiny()
    card = AdapterCard()

    def read_adapter(path: Path) -> None:
        read_lora(path, model).config_to_load(model.adapter_layers["default"], card)

    yield "adapter", Kind("lora/default/x.safetensors", whole, damage_metadata, read_adapter)
    yield "weights", Kind("headers/x.safetensors", whole, damage_header, lambda path: read_headers([path]))
    part = "model/vae/diffusion_pytorch_model.safetensors"
    yield "fingerprint", Kind(part, whole, damage_header, lambda path: weights_fingerprint(path.parents[1], ["vae"]))
    writer = gguf.GGUFWriter(folder / "whole.gguf", "flux")
    writer.add_array("names", ["a", "b"])
    writer.add_tensor("double_blocks.0.x", np.ones((4, 32), np.float32))
    writer.add_tensor("double_blocks.0.y", np.ones((4, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()

    def read_tensors(path: Path) -> None:
        file = open_tensor_file(path)
        for name in file.headers:
            file.read(name)

    yield "GGUF", Kind("x.gguf", (folder / "whole.gguf").read_bytes(), damage, read_tensors)
    yield (
        "card",
        Kind(
            "adapter.json",
            card.to_json().encode(),
            damage_values,
            lambda path: AdapterCard.from_json(path.read_bytes(), path),
        ),
    )
    source = REPOSITORY / "examples" / "shapes" / "model"
    for name in ("model_index.json", *(f"{part}/config.json" for part in ("transformer", "vae", "text_encoder"))):
        (folder / "flux" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "flux" / name).write_bytes((source / name).read_bytes())
        whole = (source / name).read_bytes()
        yield name, Kind(f"flux/{name}", whole, damage_values, lambda path: refuse_other_models(str(folder / "flux")))


def runs(folder: Path) -> Iterator[tuple[str, Kind]]:
    import torch

    from seg2any.evaluation.generated import Generated
    from seg2any.evaluation.report.pictures import read_pictures
    from seg2any.evaluation.report.results import read_run
    from seg2any.generate.recipe import BrokenImage, read_recipe, save_image
    from seg2any.training import config
    from seg2any.training.state_file import DamagedState, read_state, write_state
    from seg2any.training.store import CacheError, ShardStore

    whole = (REPOSITORY / "config" / "seg2any_shapes.yaml").read_bytes()
    yield "config", Kind("c.yaml", whole, damage, lambda path: config.load([str(path)]))
    write_state(folder / "state.safetensors", {"step": 3, "sums": {"a": torch.ones(3)}, "names": ["x", [1, 2]]})

    def read_checkpoint(path: Path) -> None:
        try:
            read_state(path)
        except DamagedState as error:
            raise UserError(str(error)) from None

    yield "state", Kind("s.safetensors", (folder / "state.safetensors").read_bytes(), damage_header, read_checkpoint)
    store = ShardStore(folder / "cache")
    store.add(b"k" * 16, {"a": np.ones(5, np.float32)})
    store.flush()
    (shard,) = (folder / "cache").iterdir()

    def read_shard(path: Path) -> None:
        opened = ShardStore(path.parent)
        if not len(opened.missing([b"k" * 16])):
            try:
                opened.read(b"k" * 16)
            except CacheError as error:
                raise UserError(str(error)) from None

    yield "cache", Kind(f"cache/{shard.name}", shard.read_bytes(), damage_ends, read_shard)
    about = {"data": {"type": "shapes", "params": {"n_scenes": 3}, "fingerprint": "x"}, "samples": 3, "groups": 1}
    whole = json.dumps({**about, "format": "png", "size": [8, 8], "recipe": {"seed": 3}}).encode()
    yield "run", Kind("made/run.json", whole, damage_values, lambda path: Generated.read(path.parent))
    row = {"name": "IoU", "value": 0.5, "low": 0.1, "high": None, "n": 3, "source": "generated", "better": "higher"}
    result = {"schema": 1, "benchmark": "shapes", "rows": [{**row, "extra": {}}], "commit": "x", "parts": {}}
    result |= {
        "settings": {},
        "versions": {},
        "hashes": {},
        "machine": {},
        "per_sample": {"IoU": {"a": 1}},
        "resamples": {},
    }
    yield "result", Kind("result.json", json.dumps(result).encode(), damage_values, read_run)
    shown = {
        "key": "a",
        "place": "worst",
        "metric": "IoU",
        "value": 0.5,
        "caption": None,
        "captions": ["a"],
        "pictures": {},
    }
    whole = json.dumps([shown]).encode()
    yield "pictures", Kind("shown/index.json", whole, damage_values, lambda path: read_pictures(path.parent))
    save_image(Image.fromarray(pixels()), {"seed": 3, "settings": {"a": [1, 2]}}, folder / "made.png")

    def recipe(path: Path) -> None:
        try:
            read_recipe(path)
        except BrokenImage as error:
            raise UserError(f"{error}: is broken") from None

    yield "recipe", Kind("recipe.png", (folder / "made.png").read_bytes(), damage_png, recipe)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Kind]]:
    """Make a whole file of every kind, and check that each is read."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "all.png").write_bytes(PICTURES["rgb.png"]())
    for name in PICTURES:
        suffix = Path(name).suffix
        (folder / f"one{suffix}.json").write_text(
            json.dumps({"segments_info": [{"mask": f"mask{suffix}", "text": "a"}]})
        )
    (folder / "map.json").write_text(json.dumps({"segments_info": document()["segments_info"][:1]}))
    (folder / "mask.png").write_bytes(PICTURES["bit.png"]())
    made = dict((*pictures(), *layouts(), *tables(folder), *models(folder), *runs(folder)))
    for name, kind in made.items():
        (folder / kind.place).parent.mkdir(parents=True, exist_ok=True)
        (folder / kind.place).write_bytes(kind.whole)
        if not name.startswith(("colour map", "mask")):  # some cannot hold regions, and are there to be refused
            with limited(STRICT), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kind.read(folder / kind.place)
    return folder, made


def peak_bytes() -> int:
    """Return the most memory that this process held since the last call of `forget_peak`; 0 where nobody knows."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def test_the_memory_of_a_reader_is_seen():
    forget_peak()
    before = peak_bytes()
    with mmap.mmap(-1, 64 << 20) as pages:  # not from memory that an earlier test has freed
        pages.write(bytes(64 << 20))
    assert peak_bytes() - before > 60 << 20 or before == 0


def try_files(folder: Path, made: dict[str, Kind], count: int, seed: int) -> str:
    """Damage and read `count` files, kind after kind; return a summary."""
    rng, outcomes, slowest, largest = np.random.default_rng(seed), Counter(), (0.0, ""), (0, "")
    for trial in range(count):
        name = list(made)[trial % len(made)]
        kind = made[name]
        path = folder / kind.place
        path.write_bytes(data := kind.damage(kind.whole, rng))
        forget_peak()
        before, start = peak_bytes(), time.process_time()
        try:
            with limited(STRICT), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kind.read(path)
            outcomes["read"] += 1
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) > 10, (name, data)
            outcomes["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{name}, file {trial}: {type(error).__name__}: {error}; {data[:2000]!r}") from error
        seconds, used = time.process_time() - start, peak_bytes() - before
        slowest, largest = max(slowest, (seconds, name)), max(largest, (used, name))
        assert seconds < SLOW and used < LARGE, (name, seconds, used >> 20, data[:2000])
        path.write_bytes(kind.whole)
    assert outcomes["refused"] > count / 5 and outcomes["read"] > count / 20
    told = f"{count} files of {len(made)} kinds: {outcomes['refused']} refused, {outcomes['read']} read"
    return f"{told}; longest {slowest[0]:.2f} s ({slowest[1]}), most memory {largest[0] >> 20} MiB ({largest[1]})"


def test_some_damaged_files_of_every_kind(kinds: tuple[Path, dict[str, Kind]]):
    print(try_files(*kinds, QUICK, seed=0))


@pytest.mark.long
def test_ten_thousand_damaged_files_of_every_kind(kinds: tuple[Path, dict[str, Kind]]):
    print(try_files(*kinds, LONG, seed=1))


def test_an_npz_that_claims_to_be_huge_is_refused_by_its_header(tmp_path: Path):
    description = b"{'descr': '|b1', 'fortran_order': False, 'shape': (1, 99999, 99999), }".ljust(117) + b"\n"
    header = b"\x93NUMPY\x01\x00" + len(description).to_bytes(2, "little") + description
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("masks.npy", header)
        archive.writestr("captions.npy", header)
    with pytest.raises(LayoutError, match="99999x99999 is more than 64 megapixels"):
        Layout.read(tmp_path / "x.npz")


def mutate(value: object, rng: np.random.Generator) -> None:
    """Change one thing somewhere in a JSON document: replace, remove, add or rename."""
    places = list(containers(value))
    place = places[rng.integers(len(places))]
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    word = copy.deepcopy(WORDS[rng.integers(len(WORDS))])
    action = rng.integers(4)
    if not keys or action == 0:
        if isinstance(place, dict):
            place[KEYS[rng.integers(len(KEYS))]] = word
        else:
            place.append(word)
    elif action == 1:
        del place[keys[rng.integers(len(keys))]]
    else:
        place[keys[rng.integers(len(keys))]] = word


def containers(value: object):
    if isinstance(value, (dict, list)):
        yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from containers(part)
