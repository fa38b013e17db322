"""Every case recorded from the published X-SAM, one test each.

The checks lie in tests/parity_xsam/, a module for each recorded file, whose CHECKS name them by the beginning of the
case's name. A case without a check fails; a kind of case that the set lacks is named by a skipped test.
"""

from __future__ import annotations

import pytest

from tests.golden_root import XSAM_SUBSET
from tests.parity_xsam.every import CHECKS, recorded_cases, run_case
from tests.parity_xsam.recorded import ROOT


@pytest.mark.parametrize("name", recorded_cases())
def test_recorded(name: str):
    run_case(name)


@pytest.mark.parametrize("file", sorted(CHECKS))
def test_kind_is_recorded(file: str):
    if not any(name.startswith(f"{file}/") for name in recorded_cases()):
        pytest.skip(f"{ROOT}: has no case of {file}")


def test_the_committed_subset_is_small():
    assert sum(path.stat().st_size for path in XSAM_SUBSET.iterdir()) <= 2_000_000
