"""Define the options of `generate` and `check` in one table, without heavy imports."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seg2any.attention.settings import NAMES, ConditionSettings
from seg2any.diffusion.step_cache import STEP_CACHES
from seg2any.generate.memory_modes import MEMORY_MODES
from seg2any.layout.checks import MAX_SEED
from seg2any.layout.overlap import OVERLAPS
from seg2any.system.arguments import Parser, call_of
from seg2any.system.console import real, whole, yes_or_no
from seg2any.system.files import user_path
from seg2any.system.precision import PRECISIONS
from seg2any.system.shipped import input_path, model_name

FLUX = "black-forest-labs/FLUX.1-dev"

DESCRIPTION = """\
Segmentation masks and captions in, images out.

A layout is NAME.png, a picture with one flat colour per region, and NAME.json beside it:
  {"caption": "a cat on a mat", "seed": 7, "segments_info": [
      {"color": "#c81e1e", "text": "a black cat"}, {"color": [0, 0, 255], "text": "a red mat"}]}
A folder with one mask picture per region, COCO run lengths and .npz work too: see seg2any/layout/readers.py.
"""

EXAMPLES = """\
examples:
  a folder of layouts, with the model in this repository: runs on any machine, offline
    {call} --pretrained_model_name_or_path examples/shapes/model --lora_ckpt_path examples/shapes/lora \\
        --seg_mask_path examples/shapes/masks --output_path result --num_inference_steps 20 --save_panels
  only look at what each region will get: a report, and an overlay picture per layout; loads no weights
    {call} --seg_mask_path my_layouts --output_path check --check
  FLUX.1-dev at 1024 pixels, four images per layout, two at a time
    {call} --lora_ckpt_path ckpt/sacap_1m/checkpoint-20000 --seg_mask_path my_layouts --output_path result \\
        --height 1024 --width 1024 --num_images_per_prompt 4 --batch_size 2

An interrupted run goes on where it stopped when started again: finished images are skipped.
Exit status: 0 done, 1 done but for the layouts named, or out of memory, 2 wrong input, 128 + N ended by signal N
(Ctrl-C: 130).
"""


def flag(default: Any, text: str, **argument: Any) -> Any:
    """Define a field of `Options` and its flag; `argument` goes to argparse."""
    return dataclasses.field(default=default, metadata={"help": text, **argument})


@dataclass(frozen=True)
class Options:
    """The options of `generate`. None: `generate` chooses."""

    seg_mask_path: Path = flag(
        None, "a layout, a folder of layouts, or a COCO file of several images", type=input_path, required=True
    )
    output_path: Path = flag(Path("result"), "folder for the images (default: result)", type=user_path)
    pretrained_model_name_or_path: str | None = flag(
        None,
        "folder or hub id (owner/name or owner/name@revision) of a FLUX pipeline, or a .safetensors or .gguf file with "
        f"its transformer (default: {FLUX}; --check needs none, and estimates tokens then)",
        type=model_name,
    )
    base_parts: str | None = flag(
        None,
        "of a base in one file: folder or hub id of the pipeline with its other parts (default: the file's folder)",
        type=model_name,
    )
    lora_ckpt_path: Path | None = flag(
        None,
        "folder with default/ and cond/, or its id on the hub (owner/name or owner/name@revision, perhaps with /folder "
        "behind it); without it only the global caption counts: plain FLUX",
        type=input_path,
    )

    seed: int | None = flag(
        None,
        "of the first image of every layout, the next has seed + 1 (default: the layout's, else 0)",
        type=whole(0, MAX_SEED),
    )
    height: int | None = flag(None, "in pixels, rounded down to whole tokens (default: the masks')", type=whole(1))
    width: int | None = flag(None, "in pixels, rounded down to whole tokens (default: the masks')", type=whole(1))
    num_images_per_prompt: int = flag(1, "images per layout (default: 1)", type=whole(1))
    num_inference_steps: int = flag(32, "denoising steps (default: 32)", type=whole(1, 1000))
    guidance_scale: float = flag(3.5, "distilled guidance (default: 3.5)", type=real(0))

    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # the flags of `ConditionSettings`

    device: str | None = flag(None, "cuda, cuda:1, mps or cpu (default: the best one present)")
    weight_dtype: str | None = flag(None, "precision of the weights (default: bf16, on a CPU fp32)", choices=PRECISIONS)
    fold: bool = flag(
        False,
        "merge the adapter into the weights first: same images, text and image tokens pay nothing for it",
        action="store_true",
    )
    memory: str = flag(
        "full", "what is quantised or waits on the CPU, see the README (default: full)", choices=MEMORY_MODES
    )
    vae_tiling: bool = flag(
        False, "decode images one by one and large ones in tiles; on in all modes but full", action="store_true"
    )
    estimate: bool = flag(
        False, "only print how much memory each mode would take; loads no weights", action="store_true"
    )
    step_cache: str = flag("none", "skip work that changes little from step to step", choices=STEP_CACHES)
    compile: bool = flag(False, "compile the blocks: minutes once, then faster, on a GPU", action="store_true")
    batch_size: int = flag(1, "images made at a time, of layouts of equal size (default: 1)", type=whole(1))
    format: str = flag("png", "of the images (default: png)", choices=("png", "jpg", "webp"))
    overwrite: bool = flag(False, "make finished images again", action="store_true")
    save_panels: bool = flag(False, "also save contour, masks and image side by side", action="store_true")
    self_check: bool = flag(
        False, "write into each recipe how well the model's attention finds each region", action="store_true"
    )
    no_recipe: bool = flag(
        False,
        "write nothing but pixels into the images: nobody learns captions and settings, and none can be made again",
        action="store_true",
    )
    overlap: str | None = flag(
        None,
        "of regions that overlap: hide: what is listed later lies on top; share: pixels belong to all "
        "(default: hide, for COCO and SA-1B share)",
        choices=OVERLAPS,
    )
    snap_colors: bool = flag(
        False,
        "give all soft edges and JPEG noise to the nearest region (default: where all colours of the JSON are there, "
        "and the rest are mixtures of them)",
        action="store_true",
    )
    check: bool = flag(False, "only write a report and an overlay picture per layout", action="store_true")
    keep_going: bool | None = flag(
        None,
        "leave out layouts that cannot be used or made, name them at once and at the end, and end with status 1 "
        "(default: true for more than one layout, unless --strict is given)",
        type=yes_or_no,
        nargs="?",
        const=True,
        metavar="true|false",
    )
    strict: bool = flag(False, "stop at warnings about layouts, and at colours to be snapped", action="store_true")

    @property
    def model(self) -> str:
        """The model to make images with: as given, else FLUX.1-dev."""
        return self.pretrained_model_name_or_path or FLUX

    @property
    def snapping(self) -> bool | None:
        """The argument of `Layout.read`: with --strict, colours are snapped only if --snap_colors asks for it."""
        return self.snap_colors or (False if self.strict else None)


def add_setting_flags(parser: Parser) -> None:
    """Add one flag for each field of `ConditionSettings`; a flag that is not given leaves None."""
    for field in dataclasses.fields(ConditionSettings):
        text = f"{field.metadata['help']}; default: as the adapter was trained"
        parser.add_argument(f"--{field.name}", default=None, help=text, **_parsing(field))


def _parsing(field: dataclasses.Field) -> dict[str, Any]:
    """Return the arguments of argparse that parse a setting."""
    if field.metadata["choices"]:
        return {"choices": field.metadata["choices"]}
    if isinstance(field.default, bool):
        return {"type": yes_or_no, "metavar": "true|false"}
    if isinstance(field.default, tuple):
        return {"type": whole(0), "nargs": 2, "metavar": ("FIRST", "LAST")}
    return {"type": (real if isinstance(field.default, float) else whole)(*field.metadata["bounds"])}


def options_of(flags: Mapping[str, Any]) -> Options:
    """Build `Options` from parsed flags; settings that are None follow the adapter."""
    settings = {name: flags[name] for name in NAMES if flags.get(name) is not None}
    return Options(**{name: value for name, value in flags.items() if name not in NAMES}, settings=settings)


def parse_options(arguments: Sequence[str] | None = None, program: str = "infer.py") -> Options:
    """Parse a command line, by default this process's; exit with status 2 if it is wrong.

    program  the command's name, as messages and examples show it
    """
    parser = Parser(prog=program, description=DESCRIPTION, epilog=EXAMPLES.format(call=call_of(program)))
    for field in dataclasses.fields(Options):
        if field.name == "settings":
            add_setting_flags(parser)
            continue
        required = field.metadata.get("required", False)
        default = {} if required else {"default": field.default}
        parser.add_argument(f"--{field.name}", **default, **field.metadata)
    options = options_of(vars(parser.parse_args(arguments)))
    if options.check and options.estimate:
        parser.error("--check and --estimate each make no images but a report of their own; give one of them")
    if options.no_recipe and options.self_check:
        parser.error("--self_check writes into recipes, which --no_recipe leaves out; give one of them")
    if options.strict and options.keep_going:
        parser.error("--strict stops at what --keep_going leaves out; give one of them")
    return options
