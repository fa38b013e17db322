"""Whole tables, models and results of runs of every kind that is read, for `test_reader_fuzz`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from seg2any.system.errors import UserError
from tests.fuzz_damage import Kind, damage, damage_ends, damage_header, damage_metadata, damage_png, damage_values
from tests.fuzz_layouts import pixels
from tests.golden_root import REPOSITORY


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
