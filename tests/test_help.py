"""--help of every user command: quick, and with an example or a default."""

import json
import subprocess
import sys

import pytest

from tests.golden_root import REPOSITORY

pytestmark = pytest.mark.slow

SCRIPTS = ("train.py", "infer.py", "prepare_dataset_bucket_map.py")
MODULES = (
    "seg2any.data.sacap",
    "seg2any.evaluation.shapes",
    "seg2any.evaluation.ablation",
    "seg2any.evaluation.runners",
    "seg2any.evaluation.generate_image",
    "seg2any.evaluation.compare",
)
MODULES += (
    "seg2any.evaluation.report",
    "seg2any.evaluation.labels.convert_coco_stuff164k",
    "seg2any.evaluation.labels.convert_labelsize_512",
)

ASKING = """
import contextlib, io, json, runpy, sys

told = {}
for name in json.loads(sys.argv[1]):
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            run = runpy.run_path if name.endswith(".py") else runpy.run_module
            run(name, run_name="__main__")
        except SystemExit as end:
            status = end.code
    heavy = [module for module in ("torch", "diffusers", "transformers", "scipy") if module in sys.modules]
    told[name] = status, heavy, printed.getvalue()
print(json.dumps(told))
"""


def test_help_loads_nothing_heavy_and_shows_defaults_or_examples():
    names = json.dumps([*SCRIPTS, *MODULES])
    asked = subprocess.run([sys.executable, "-c", ASKING, names], cwd=REPOSITORY, capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    for name, (status, heavy, text) in json.loads(asked.stdout).items():
        assert status == 0 and not heavy, f"{name} --help loads {heavy}"
        assert text.startswith("usage: ") and ("default" in text or "python " in text), name
