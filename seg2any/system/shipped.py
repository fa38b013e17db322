"""Find the files that come with the package: configs, and the small model with its adapters and layouts.

In a checkout they are config/ and examples/shapes/. The wheel holds the configs as seg2any/config; the small model is a
distribution of its own, seg2any-demo, which `pip install "seg2any[demo]"` adds.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from seg2any.system.errors import UserError
from seg2any.system.files import user_path

PACKAGE = Path(__file__).parents[1]
CONFIGS, DEMO = "config", "examples/shapes"  # in a checkout, and in the commands of the documentation
DEMO_PACKAGE = "seg2any_demo"


def config_folder() -> Path:
    """Return the folder of the configs, in a checkout or in the installed package."""
    return next((path for path in (PACKAGE / CONFIGS, PACKAGE.parent / CONFIGS) if path.is_dir()), Path(CONFIGS))


def demo_folder() -> Path:
    """Return the folder of the small models: model/ with lora/, lora_isolated/, lora_coloring/ and masks/; xsam/.

    >>> (demo_folder() / "masks" / "five.json").is_file()
    True

    Raises UserError where it is not installed.
    """
    found = _demo_folder()
    if found is None:
        raise UserError('the small model is not installed; run `pip install "seg2any[demo]"`')
    return found


def input_path(text: str | os.PathLike) -> Path:
    """Return the path of a file to read, as people write it: ~ is the home folder, and shipped files are found.

    So `config/memory_24gb.yaml` and `examples/shapes/model` name the same files in a checkout, in every other folder,
    and beside an installed package. A file of that name in the current folder comes first.
    """
    path = user_path(text)
    if not path.is_absolute() and not path.exists():
        for prefix, find in ((CONFIGS, config_folder), (DEMO, _demo_folder)):
            if path.is_relative_to(prefix) and (folder := find()) is not None:
                found = folder / path.relative_to(prefix)
                return found if found.exists() else path
    return path


def model_name(text: str | os.PathLike) -> str:
    """Return the folder of a model by the rules of `input_path`; hub ids, and `./` before a folder, stay as written."""
    written = os.path.expanduser(text)
    found = input_path(text)
    return written if found == Path(written) else str(found)


def _demo_folder() -> Path | None:
    folders = [PACKAGE.parent / DEMO]
    if (spec := importlib.util.find_spec(DEMO_PACKAGE)) is not None:
        folders += map(Path, spec.submodule_search_locations or ())
    return next((folder for folder in folders if (folder / "model" / "model_index.json").is_file()), None)
