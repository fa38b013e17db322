"""Atomic files: complete or absent, and with the permissions of the umask."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from seg2any.system.files import atomic_write, remove_stale, sort_metadata


def test_a_file_is_replaced_only_when_it_is_written(tmp_path: Path):
    path = tmp_path / "new folder" / "a.txt"
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("half")
        1 // 0  # noqa: B018
    assert list(path.parent.iterdir()) == []
    for text in ("first", "second"):
        with atomic_write(path) as temporary:
            assert temporary.parent == path.parent and temporary.suffix == path.suffix
            temporary.write_text(text)
        assert path.read_text() == text and list(path.parent.iterdir()) == [path]


def test_files_written_by_safetensors_get_the_permissions_of_the_umask(tmp_path: Path):
    """Check the permissions of files that safetensors creates with mode 600."""
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a.safetensors") as temporary:
            save_file({"a": np.zeros(3)}, temporary)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o640


def test_only_stale_temporary_files_are_removed(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "a.bin") as killed:
        killed.write_text("half")
        left = tmp_path / killed.name.replace("a.", "b.")
        os.link(killed, left)  # the file that a killed writer leaves behind
        1 // 0  # noqa: B018
    os.utime(left, (0, 0))
    (tmp_path / ".hidden").touch()
    with atomic_write(tmp_path / "c.bin") as temporary:
        temporary.write_text("in the making")
        remove_stale(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "c.bin"]
    remove_stale(tmp_path / "no folder")


def test_files_of_equal_content_are_equal(tmp_path):
    """Check that metadata has a fixed order; safetensors changes it on every call."""
    metadata = {name: f'"{name}" ü\n\\' for name in ["format", "state", "crc32", "card", "adapter"]}
    files = []
    for number in range(12):
        path = tmp_path / f"{number}.safetensors"
        save_file({"b": np.arange(3), "a": np.ones((2, 2))}, path, metadata)
        sort_metadata(path)
        with safe_open(path, "np") as file:
            assert file.metadata() == metadata and (file.get_tensor("b") == np.arange(3)).all()
        files.append(path.read_bytes())
    assert len({*files}) == 1
