"""Usable rows of SACap-1M's table, compared with a plain loop over all rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from seg2any.data import sacap_1m
from seg2any.data.catalog import open_data_set
from tests.opened_data import keys
from tests.synthetic_data import make_sacap_1m, write_sacap_parquet


def usable(rows: list[dict], root: Path) -> list[str]:
    """Return keys of the rows whose files exist and whose name no earlier row has."""
    found: dict[str, None] = {}
    for row in rows:
        photo = root / (row["image_group"] or "") / (row["imagename"] or "no name")
        if photo.is_file() and photo.with_suffix(".json").is_file() and row["segments_info"]:
            found.setdefault(photo.stem)
    return list(found)


@pytest.mark.parametrize("alike", [False, True])
def test_usable_rows_are_found_in_any_order_of_any_groups(alike: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Shuffle rows and groups.

    With `alike` all names have one hash, which must not make them one name.
    """
    if alike:
        monkeypatch.setattr(sacap_1m, "hash", lambda text: 7, raising=False)
    made = make_sacap_1m(tmp_path, n=12, groups=4, n_masks=1)
    rng, root = np.random.default_rng(5), Path(made.params["image_root"])
    segments = [{"anno_id": 1, "caption": "a cat"}]
    groups, names = [f"sa_{n:06d}" for n in range(5)], [truth.image.name for truth in made.truths]
    there = [(truth.image.parent.name, truth.image.name) for truth in made.truths]
    for n in (1, 5):
        made.truths[n].image.with_suffix(".json").unlink()
    made.truths[8].image.unlink()
    pairs = [*there, *there[:4], *zip(rng.choice(groups, 20), rng.choice(names, 20), strict=True), (None, names[0])]
    rows = [
        {"image_group": group and str(group), "imagename": str(name), "caption": "a cat", "segments_info": segments}
        for group, name in pairs
    ]
    rows += [rows[0] | {"imagename": None}, rows[2] | {"segments_info": []}]
    for _ in range(3):
        rows = [rows[n] for n in rng.permutation(len(rows))]
        write_sacap_parquet(Path(made.params["seg_caption_path"]), rows)
        with pytest.warns(UserWarning, match="are left out"):
            data = open_data_set("sacap_1m", made.params)
        assert keys(data) == usable(rows, root) and len(data) == 9
        assert len(data.left_out) == len(rows) - 9 and all(one.reason for one in data.left_out)
