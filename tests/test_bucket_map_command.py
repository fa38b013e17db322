"""prepare_dataset_bucket_map.py: published flags, torchrun, train.sh, wrong input."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import prepare_dataset_bucket_map
from seg2any.data.catalog import open_data_set
from seg2any.training import config
from seg2any.training.token_counts import open_map
from tests import forked, synthetic_data
from tests.golden_root import REPOSITORY
from tests.test_bucket_map import MODEL

pytestmark = pytest.mark.slow

MAP_NAME = "64H_64W-group_bucket.parquet"


def published_config(folder: Path, params: dict) -> Path:
    path = folder / "sacap.yaml"
    lines = "".join(f"      {name}: {value}\n" for name, value in params.items())
    path.write_text(
        "resolution: 128\ncond_scale_factor: 2\n"
        "data:\n  train:\n    target: dataset.sacap_1m_dataset.SACap_1M_Dataset\n    params:\n"
        f"{lines}      resolution: 128\n      cond_scale_factor: 2\n      is_group_bucket: false\n"
        f"model:\n  pretrained_model_name_or_path: {MODEL}\n"
    )
    return path


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["prepare_dataset_bucket_map.py", *map(str, arguments)])
    return prepare_dataset_bucket_map.main()


def forked_by_two(arguments: list[str], folder: Path) -> None:
    """Count in two forked processes."""

    def count(rank: int) -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            assert run_main(monkeypatch, *arguments) == 0

    assert forked.run(count, folder / "log.txt", 2) == [0, 0], (folder / "log.txt").read_text()


def launched_by_torchrun(arguments: list[str], folder: Path) -> None:
    """Count as the published command line does."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "prepare_dataset_bucket_map.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([*command, *arguments], check=True, cwd=REPOSITORY, env=environment, capture_output=True)


@pytest.mark.parametrize("by_two", [forked_by_two, pytest.param(launched_by_torchrun, marks=pytest.mark.long)])
def test_two_processes_count_what_one_does(by_two, tmp_path: Path, monkeypatch, capsys):
    made = synthetic_data.make_sacap_1m(tmp_path, 6)
    path = published_config(tmp_path, made.params)
    arguments = [str(path), "--data.train.params.is_group_bucket=True", "--workers", "1"]
    by_two(arguments, tmp_path)
    found = Path(made.params["cache_root"]) / MAP_NAME
    counted = found.read_bytes()
    found.unlink()
    assert run_main(monkeypatch, *arguments) == 0
    assert f"{found}: 6 rows" in capsys.readouterr().out
    assert found.read_bytes() == counted
    data = open_data_set("sacap_1m", made.params)
    settings = config.load(arguments[:2])
    tokenizer = AutoTokenizer.from_pretrained(MODEL, subfolder="tokenizer_2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(open_map(data, tokenizer, 16, settings)) == 6


def test_unreadable_samples_are_reported_listed_and_recounted_once_repaired(tmp_path: Path, monkeypatch, capsys):
    made = synthetic_data.make_sacap_1m(tmp_path, 6)
    path, map_file = published_config(tmp_path, made.params), Path(made.params["cache_root"]) / MAP_NAME
    json_file = made.truths[2].image.with_suffix(".json")
    whole = json_file.read_bytes()
    json_file.write_bytes(whole[:-30])
    listed = map_file.with_name("64H_64W-group_bucket-left_out.tsv")
    for _ in range(2):  # the second call finds the map up to date
        assert run_main(monkeypatch, path, "--workers", "1") == 0
        said = " ".join(capsys.readouterr().err.split())
        assert "data set sacap_1m: 1 of 6 samples are left out; the first is" in said and str(json_file) in said
        assert listed.read_text().startswith(f"{made.truths[2].key}\t{json_file}: is not valid JSON")
    assert run_main(monkeypatch, path, "--workers", "1", "--data.on_error=fail") == 2
    assert "1 of 6 samples cannot be used" in capsys.readouterr().err
    json_file.write_bytes(whole)
    assert run_main(monkeypatch, path, "--workers", "1") == 0
    assert f"was damaged when it was counted; remove {map_file} to count again" in capsys.readouterr().err
    map_file.unlink()
    assert run_main(monkeypatch, path, "--workers", "1") == 0
    assert "left out" not in capsys.readouterr().err and not listed.exists()


def test_train_sh_counts_the_data_it_trains_on(tmp_path: Path):
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\necho "$@"\n')
    stub.chmod(0o755)
    subset = "--data.train.params.seg_caption_path=subset.parquet"
    command, environment = ["bash", "train.sh", "sacap_1m", subset], os.environ | {"PYTHON": str(stub)}
    said = subprocess.run(command, check=True, cwd=REPOSITORY, env=environment, capture_output=True, text=True).stdout
    counting, training = (line.split() for line in said.splitlines())
    assert (counting[0], training[0]) == ("prepare_dataset_bucket_map.py", "train.py")
    assert counting[1:] == training[1:] and counting[-1] == subset


def test_wrong_input_is_one_line(tmp_path: Path, monkeypatch, capsys):
    made = synthetic_data.make_sacap_1m(tmp_path, 3)
    path = published_config(tmp_path, made.params)
    for arguments, message in (
        (["--shard", "0/1"], "CONFIG.yaml"),
        (["none.yaml"], "none.yaml: "),
        ([path, "--data.trian.type=shapes"], "unknown key 'data.trian"),
        ([path, "--shard", "2/2"], "--shard 2/2"),
        ([path, "--workers", "0"], "--workers 0"),
        ([path, "--data.train.params.cache_root=null"], "cache_root: missing"),
        ([path, "--data.train.params.cache_root=5"], "parameter 'cache_root' is 5; give"),
        ([path], f"no folder {made.params['image_root']}"),
    ):
        if arguments == [path]:
            shutil.rmtree(made.params["image_root"])
        assert run_main(monkeypatch, *arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("prepare_dataset_bucket_map.py: ") and said.count("\n") == 1 and message in said


def test_sizes_without_a_token_and_blocked_folders_are_one_line(tmp_path: Path, monkeypatch, capsys):
    made = synthetic_data.make_sacap_1m(tmp_path, 3)
    made.params.pop("cache_root")
    (tmp_path / "file").touch()
    (tmp_path / "taken" / MAP_NAME).mkdir(parents=True)
    path = published_config(tmp_path, made.params)
    for arguments, message in (
        (
            ["--resolution=8", "--data.train.params.resolution=8"],
            "resolution: 8 with cond_scale_factor 2 is less than one token of 16 pixels",
        ),
        (["--cond_scale_factor=999"], "cond_scale_factor"),
        (["--data.train.params.resolution=512"], "data.train.params.resolution: 512 contradicts resolution 128"),
        ([f"--trainer.cache_dir={tmp_path / 'file'}"], "cannot be written (Not a directory); make room, or name"),
        ([f"--trainer.cache_dir={tmp_path / 'taken'}"], "cannot be written (Is a directory)"),
    ):
        base = [path, "--workers", "1", f"--trainer.cache_dir={tmp_path}"]
        assert run_main(monkeypatch, *base, *arguments) == 2
        (said,) = [line for line in capsys.readouterr().err.splitlines() if line[:12] not in ("", "count tokens")]
        assert said.startswith("prepare_dataset_bucket_map.py: ") and message in said


def test_help_names_flags_and_launchers(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_main(monkeypatch, "--help")
    said = capsys.readouterr().out
    assert stopped.value.code == 0
    for word in ("--shard", "--workers", "torchrun", "is_group_bucket", "cache_root"):
        assert word in said
