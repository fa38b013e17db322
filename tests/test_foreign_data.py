"""Configs, results and data sets from strangers: they read no secret, write nowhere, and leave no folder."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seg2any.data.left_out import LeftOut, LeftOutWarning, check_left_out
from seg2any.data.sacap.plan import TarNeed, write_links
from seg2any.data.sacap_1m import SACap1MDataset
from seg2any.evaluation.generated import Generated
from seg2any.system.errors import UserError
from seg2any.system.files import held, locked
from seg2any.system.limits import STRICT, limited
from seg2any.system.weights import weights_fingerprint
from seg2any.training import config


@pytest.mark.parametrize(
    "text",
    [
        "project: {tracker_project_name: '${oc.env:MY_SECRET}'}",
        "project: {tracker_project_name: '${oc.env:NOT_SET,${oc.env:MY_SECRET}}'}",
        "project: {tracker_project_name: 'run ${oc.env:MY_SECRET}'}",
        "seed: ${oc.decode:'${oc.env:MY_SECRET}'}",
        "project: {tracker_project_name: '${oc.create:{a: 1}}'}",
        "data: {train: {params: {split: ['${oc.env:MY_SECRET}']}}}",
        "project: {tracker_project_name: '${project.${oc.env:MY_SECRET}}'}",
    ],
)
@pytest.mark.parametrize("place", ["file", "flag"])
def test_configs_cannot_read_the_environment(text: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_SECRET", "hunter2")
    (tmp_path / "c.yaml").write_text(text)
    flags = ["--project.tracker_project_name=${oc.env:MY_SECRET}"]
    with pytest.raises(UserError, match=r"write the value, or \$\{key\}") as error:
        config.load([str(tmp_path / "c.yaml")] if place == "file" else flags)
    assert "hunter2" not in str(error.value) and "\n" not in str(error.value)


def test_a_key_may_repeat_a_plain_value_and_nothing_grows(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("seed: 7\nresolution: ${seed}\n")
    assert config.load([str(path)]).resolution == 7
    doubled = "\n".join(f"a{n}: ['${{a{n + 1}}}', '${{a{n + 1}}}']" for n in range(40))
    for text in (doubled, "a: ${b}\nb: ${a}", "seed: ${resolution}\nresolution: ${seed}", "seed: ${data}\ndata: {}"):
        path.write_text(text)
        with pytest.raises(UserError, match="no plain value|unknown key"):
            config.load([str(path)])
    path.write_text("seed: 1\n" + "# " * (1 << 19))
    with pytest.raises(UserError, match="larger than 1024 KiB"):
        config.load([str(path)])
    path.write_text("seed: " + "[" * 5000)
    with pytest.raises(UserError, match="not readable as yaml"):
        config.load([str(path)])


RUN = {
    "data": {"type": "shapes", "params": {"split": "test", "n_scenes": 3}, "fingerprint": "x"},
    **{"samples": 3, "groups": 1, "format": "png", "size": [8, 8], "recipe": {}},
}


@pytest.mark.parametrize(
    "change",
    [
        {"data": 5},
        {"data": {"type": "shapes", "fingerprint": "x"}},
        {"data": {"type": 5, "params": {}, "fingerprint": "x"}},
        {"samples": 10**12},
        {"samples": True},
        {"groups": "many"},
        {"size": [8]},
        {"format": "../../x"},
        {"recipe": []},
    ],
)
def test_a_damaged_run_is_one_line(change: dict, tmp_path: Path):
    (tmp_path / "run.json").write_text(json.dumps(RUN | change))
    with pytest.raises(UserError, match="run.json: the file is damaged") as error:
        Generated.read(tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "run.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="cannot be read"):
        Generated.read(tmp_path)


def table_of(folder: Path, groups: list[str], names: list[str] | None = None, caption: str = "a") -> Path:
    names = names or [f"{n}.jpg" for n in range(len(groups))]
    region = [{"anno_id": 1, "caption": "b"}]
    columns = {"imagename": names, "image_group": groups, "caption": [caption] * len(groups)}
    pq.write_table(pa.table({**columns, "segments_info": [region] * len(groups)}), folder / "t.parquet")
    return folder / "t.parquet"


def test_results_do_not_say_where_a_data_set_writes(tmp_path: Path):
    path = table_of(tmp_path, ["g"])
    params = {"seg_caption_path": str(path), "image_root": str(tmp_path), "cache_root": str(tmp_path / "theirs")}
    run = RUN | {"data": {"type": "sacap_1m", "params": params, "fingerprint": "x"}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / "g").mkdir()
    for suffix in ("jpg", "json"):
        (tmp_path / "g" / f"0.{suffix}").touch()
    with pytest.raises(UserError, match="has changed since"):
        Generated.read(tmp_path).open_data()
    assert not (tmp_path / "theirs").exists()
    with pytest.raises(UserError, match="has changed since"):
        Generated.read(tmp_path).open_data(tmp_path / "ours")
    assert (tmp_path / "ours").is_dir() and not (tmp_path / "theirs").exists()


def test_rows_that_lead_out_of_the_root_are_left_out(tmp_path: Path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "g", outside):
        folder.mkdir(parents=True)
        for suffix in ("jpg", "json"):
            (folder / f"0.{suffix}").touch()
    groups = ["g", "../outside", str(outside), "..", "g/../../outside", "g\\x", "."]
    names = ["0.jpg"] * len(groups) + ["../outside/0.jpg", str(outside / "0.jpg"), ".."]
    path = table_of(tmp_path, [*groups, *["g"] * 3], names)
    with pytest.warns(LeftOutWarning, match="9 of 10 samples are left out.*imagename or image_group is a path"):
        data = SACap1MDataset(path, root)
    assert len(data) == 1 and data.key(0) == "0"


@pytest.mark.parametrize("is_packed", [True, False])
def test_a_small_parquet_file_does_not_unpack_without_end(is_packed: bool, tmp_path: Path):
    """Repeat one text in all rows: as Arrow's dictionary, or as that of parquet alone."""
    (tmp_path / "root").mkdir()
    rows = 40_000
    text = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), ["x" * 4000])
    text = text if is_packed else text.cast(pa.string())
    regions = pa.array([[{"anno_id": 1, "caption": "b"}]] * rows)
    pq.write_table(
        pa.table({"imagename": ["x"] * rows, "caption": text, "segments_info": regions}), tmp_path / "t.parquet"
    )
    assert (tmp_path / "t.parquet").stat().st_size < 200_000
    start = time.process_time()
    with limited(STRICT), pytest.raises(UserError, match="unpack to more than") as error:
        SACap1MDataset(tmp_path / "t.parquet", tmp_path / "root", tmp_path / "cache")
    assert time.process_time() - start < 2 and "\n" not in str(error.value)
    assert not list(tmp_path.glob("cache/*"))


def test_a_row_with_a_text_that_is_too_long_is_left_out(tmp_path: Path):
    (tmp_path / "root").mkdir()
    with pytest.raises(UserError, match="a text is too long"):
        SACap1MDataset(table_of(tmp_path, ["g"], caption="x" * 10_001), tmp_path / "root")


def test_lists_of_left_out_samples_are_no_formulas_and_keep_their_rows(tmp_path: Path):
    left_out = [LeftOut("=cmd|' /C calc'!A0", "a\tb\r\nc"), LeftOut("a\n=1+1\tx", "@x"), LeftOut("-1", "+2")]
    with pytest.warns(LeftOutWarning):
        check_left_out("x", left_out, 9, "skip", tmp_path / "list.tsv")
    rows = [line.split("\t") for line in (tmp_path / "list.tsv").read_text().split("\n")[:-1]]
    assert rows == [["'=cmd|' /C calc'!A0", "a b c"], ["a =1+1 x", "'@x"], ["'-1", "'+2"]]


def test_only_links_are_copied_for_wget(tmp_path: Path):
    needs = [TarNeed(f"sa_{n}", 1, 1, 1, True, None, 0) for n in range(4)]
    links = ["--input-file=/etc/hostname", "https://x/1", "file:///etc/passwd", "http://x/3"]
    (tmp_path / "in.txt").write_text("".join(f"sa_{n}.tar\t{link}\n" for n, link in enumerate(links)))
    assert write_links(tmp_path / "in.txt", tmp_path / "out.txt", needs) == ["sa_0.tar", "sa_2.tar"]
    assert (tmp_path / "out.txt").read_text().splitlines()[1:] == ["sa_1.tar\thttps://x/1", "sa_3.tar\thttp://x/3"]


def test_a_lock_that_is_a_link_makes_no_file_elsewhere(tmp_path: Path):
    folder, target = tmp_path / "run", tmp_path / "elsewhere"
    folder.mkdir()
    (folder / ".running").symlink_to(target)
    for lock in (held(folder), locked(folder / ".running")):
        with pytest.raises(UserError, match="is a link.*remove it"), lock:
            pass
    assert not target.exists()


def test_the_header_of_weights_is_bounded_and_flat(tmp_path: Path):
    part = tmp_path / "model" / "vae"
    part.mkdir(parents=True)
    file = part / "diffusion_pytorch_model.safetensors"
    nested = b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    for header, length in ((b"{}", 3 << 30), (nested, len(nested))):
        with open(file, "wb") as opened:
            opened.write(length.to_bytes(8, "little") + header)
            opened.truncate(8 + length)
        start = time.process_time()
        assert weights_fingerprint(tmp_path / "model", ["vae"])
        assert time.process_time() - start < 1
