"""Make the images of a benchmark: one folder per repetition, an image per sample in each.

python eval/generate_image.py config/seg2any_ade20k.yaml --lora_ckpt_path ckpt/ade20k --output_path result/ade20k
accelerate launch --num_processes 4 eval/generate_image.py config/seg2any_ade20k.yaml ...
ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 eval/generate_image.py ...      (processes without a GPU)
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from seg2any.attention.settings import NAMES
from seg2any.generate.options import Options, add_setting_flags, options_of
from seg2any.system.allocator import let_segments_grow
from seg2any.system.arguments import Parser
from seg2any.system.console import exit_status, plain_messages, warn, whole
from seg2any.system.errors import UserError
from seg2any.system.files import user_path
from seg2any.system.interrupts import run_command
from seg2any.system.threads import compute_on_idle_cores
from seg2any.training.config import ROOT_KEYS, Config, load

if TYPE_CHECKING:  # heavy: not before --help is answered
    from seg2any.attention.settings import ConditionSettings
    from seg2any.data.dataset import DataSet
    from seg2any.generate.choices import Machine

WEIGHTS_READ_WITHIN = timedelta(hours=2)  # from a slow disk
# Flags of infer.py whose default is a value of the config -> its key.
OF_CONFIG = {
    "pretrained_model_name_or_path": "model.pretrained_model_name_or_path",
    "base_parts": "model.base_parts",
    "lora_ckpt_path": "model.lora_ckpt_path",
    "num_images_per_prompt": "eval.num_images_per_prompt",
    "num_inference_steps": "model.num_inference_steps",
    "guidance_scale": "eval.guidance_scale",
}
OF_RUN = ("device", "weight_dtype", "batch_size", "overwrite")

DETAILS = """\
CONFIG is a config of training: its data.val is the benchmark, its resolution, seed and eval section are the settings of
the images, and --section.key=value changes it, as for train.py. Adapters with a card are used as they were trained;
published ones have no card and follow the config. Without adapters the model is plain FLUX, as in infer.py.

The seed of image k of a sample depends on the config's seed, the sample's name and k only. So neither the number of
processes nor an interruption changes an image: start the same command again, and it makes what is missing.

Exit status: 0 done, 1 out of memory, 2 wrong input, 128 + N ended by signal N (Ctrl-C: 130).
"""


@dataclass(frozen=True)
class Request:
    """A config, and the options of infer.py that apply to benchmarks."""

    config: Config
    options: Options
    limit: int | None
    published_jpeg: bool


def parse_request(arguments: Sequence[str] | None = None) -> Request:
    """Parse a command line, by default this process's.

    Raises UserError for an error in the config.
    """
    parser = Parser(
        prog="python -m seg2any.evaluation.generate_image",
        usage="%(prog)s CONFIG.yaml ... [--section.key=value ...] --output_path FOLDER [flags]",
        description=__doc__,
        epilog=DETAILS,
    )
    parser.add_argument("--base", action="append", default=[], metavar="CONFIG", help="the published name of CONFIG")
    parser.add_argument("--output_path", type=user_path, required=True, help="folder for the images")
    parser.add_argument("--limit", type=whole(1), help="number of samples, counted from the first (default: all)")
    parser.add_argument(
        "--published_jpeg",
        action="store_true",
        help="JPEG of quality 75 under the name of the source image, as published, instead of PNG",
    )
    for field in dataclasses.fields(Options):
        if field.name in (*OF_CONFIG, *OF_RUN):
            flag = {**field.metadata}
            if field.name in OF_CONFIG:
                flag["help"] = f"{flag['help'].split(' (default')[0]} (default: {OF_CONFIG[field.name]})"
            default = None if field.name in OF_CONFIG else field.default
            parser.add_argument(f"--{field.name}", default=default, **flag)
    add_setting_flags(parser)
    given, rest = parser.parse_beside_keys(sys.argv[1:] if arguments is None else arguments, ROOT_KEYS)
    names = (*(field.name for field in dataclasses.fields(Options)), *NAMES)
    named = {name: getattr(given, name) for name in names if name in given}
    if not given.base and not any(argument.endswith((".yaml", ".yml")) for argument in rest):
        parser.error("no CONFIG; give a file such as config/seg2any_shapes.yaml")
    config = load([*given.base, *rest])
    for flag, key in OF_CONFIG.items():
        section, name = key.split(".")
        if named[flag] is None:
            named[flag] = getattr(getattr(config, section), name)
    if named["lora_ckpt_path"] is not None:
        named["lora_ckpt_path"] = Path(named["lora_ckpt_path"])
    if config.data.aspect != "stretch":
        raise UserError(f"data.aspect: {config.data.aspect} is for training only; use stretch, as benchmarks do")
    return Request(config, options_of(named), given.limit, given.published_jpeg)


def generate(request: Request) -> None:
    """Make this process's share of the images; the first process writes run.json.

    Raises UserError and MemoryError.
    """
    from accelerate import PartialState

    from seg2any.evaluation.generated import Generated, discard_leftovers, write_run
    from seg2any.evaluation.generation import ImageSet, make_missing, plan
    from seg2any.generate.choices import PLAIN_WORDS, Machine, choose_settings, explained_memory
    from seg2any.generate.model import adapter_folder, read_adapter_card
    from seg2any.generate.session import Loading, Session
    from seg2any.system.device import choose_device, device_name
    from seg2any.system.precision import choose_dtype
    from seg2any.system.processes import Process

    options, folder = request.options, request.options.output_path
    data = open_data(request.config)
    card = read_adapter_card(adapter_folder(options.pretrained_model_name_or_path, options.lora_ckpt_path))
    settings, remarks = choose_settings(options, card, request.config.model.condition)
    device = choose_device(device_name(Process.of(os.environ), options.device))
    processes = PartialState(cpu=device.type == "cpu", timeout=WEIGHTS_READ_WITHIN)
    machine = Machine(device, choose_dtype(options.weight_dtype, device))
    if processes.is_main_process:
        warn(remarks)
        write_run(folder, describe(request, data, settings, machine), options.overwrite)
        discard_leftovers(folder)
    processes.wait_for_everyone()  # the first one reads all weights, whose digests stand in the recipe
    run = Generated.read(folder).run
    sizes = (run["samples"], run["groups"], run["format"], tuple(run["size"]))
    task = ImageSet(data, folder, *sizes, run["seed"], run["recipe"])
    process = Process(processes.process_index, processes.num_processes, processes.local_process_index)
    blocks, finished = plan(task, options.batch_size, process, options.overwrite)
    missing = sum(len(block.missing) for block in blocks)
    print(f"{process}{machine.work(missing, finished)}", flush=True)
    if settings.is_plain and process.is_first:
        print(PLAIN_WORDS, flush=True)
    if blocks:
        with explained_memory(options, settings, machine):
            model, adapter = options.pretrained_model_name_or_path, options.lora_ckpt_path
            loading = Loading(adapter, base_parts=options.base_parts)
            session = Session.open(model, machine.dtype, machine.device, loading)
            make_missing(task, blocks, session, settings, shown=process.is_first)
    print(f"{process}images are in {folder}")
    processes.destroy_process_group()  # without waiting for the others, which may have more to do


def open_data(config: Config) -> DataSet:
    """Open the data set of `data.val`. Raises UserError."""
    from seg2any.data.catalog import data_set_name, open_data_set

    name = data_set_name(config.data.val.type, config.data.val.target)
    if name is None:
        raise UserError("data.val.type: no data set is chosen; give one, for example --data.val.type=shapes")
    return open_data_set(name, config.data.val.params, config.data.on_error)


def describe(request: Request, data: DataSet, settings: ConditionSettings, machine: Machine) -> dict:
    """Build the content of run.json."""
    from seg2any.data.catalog import data_set_name
    from seg2any.generate.choices import shared_recipe
    from seg2any.system.provenance import circumstances

    chosen, side = request.config.data.val, request.config.resolution
    name, about = data_set_name(chosen.type, chosen.target), circumstances(machine.device)
    return {
        "data": {"type": name, "params": dict(chosen.params), "fingerprint": data.fingerprint()},
        "left_out": len(getattr(data, "left_out", ())),  # samples that cannot be used
        "samples": len(data) if request.limit is None else min(request.limit, len(data)),
        "groups": request.options.num_images_per_prompt,
        "format": "jpeg" if request.published_jpeg else "png",
        "size": [side, side],
        "seed": request.config.seed,
        "recipe": shared_recipe(request.options, settings, machine),
        "commit": about["commit"],
        "machine": about["machine"],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Exit status: 0 done, 1 out of memory, 2 wrong input, 128 + N ended by signal N (Ctrl-C: 130).
    """

    def run() -> None:
        request = parse_request(arguments)
        let_segments_grow()
        with plain_messages():
            compute_on_idle_cores()
            generate(request)

    advice = "the images written so far are complete, start again to go on"
    return exit_status("seg2any.evaluation.generate_image", run, advice)


if __name__ == "__main__":
    run_command(main)
