"""`prepare`, published as prepare_dataset_bucket_map.py: count the tokens of every training sample."""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import Sequence

from seg2any.system.arguments import Parser, call_of, script_of
from seg2any.system.console import exit_status, plain_messages
from seg2any.system.errors import UserError
from seg2any.system.processes import Process

DESCRIPTION = """\
Count the tokens of every training sample, so that batches hold samples of similar length.

    {call} config/seg2any_sacap_1m.yaml --data.train.params.is_group_bucket=True
    torchrun --nproc_per_node 4 {script} config/seg2any_sacap_1m.yaml --workers 8
    {call} config/seg2any_sacap_1m.yaml --shard 3/16

CONFIG.yaml ... and --section.key=value are the same as for training. The map is written into
data.train.params.cache_root, or into trainer.cache_dir for data sets without that parameter. After an interruption the
same command continues.
"""


def main(arguments: Sequence[str], program: str) -> int:
    """Run the command line.

    Exit status: 0 done, 1 out of memory, 2 wrong input, 130 interrupted.
    """
    from seg2any.training.config import ROOT_KEYS

    parser = Parser(
        prog=program,
        usage="%(prog)s CONFIG.yaml ... [--section.key=value ...] [--workers N] [--shard i/n]",
        description=DESCRIPTION.format(call=call_of(program), script=script_of(program)),
    )
    parser.add_argument(
        "--workers", type=int, help="worker processes (default: one per core, shared by torchrun's processes)"
    )
    parser.add_argument(
        "--shard", default="0/1", help="i/n: count part i of n, i from 0; the last shard to finish writes the map"
    )
    options, others = parser.parse_beside_keys(arguments, ROOT_KEYS)
    return exit_status(program, lambda: run(options, others), "run the same command again to go on")


@plain_messages()
def run(options: Namespace, arguments: list[str]) -> None:
    """Count this process's share of the samples and print where the map is. Raises UserError."""
    if not arguments:
        raise UserError("CONFIG.yaml is missing; give at least one config, see --help")
    from seg2any.training import config
    from seg2any.training.early import refuse_early

    process = Process.of(os.environ)
    counting = with_shard(options.shard, process)
    workers = process.cores if options.workers is None else options.workers
    if workers < 1:
        raise UserError(f"--workers {workers}: the number is too small; give at least 1")
    settings = config.load(arguments)
    refuse_early(settings)
    # Late: these imports take seconds, and a wrong key must be reported before them.
    from seg2any.data.bucket_map import BucketMap
    from seg2any.data.catalog import data_set_name, open_data_set
    from seg2any.data.count import Parts, RowCounter, make_map
    from seg2any.data.left_out import check_unreadable
    from seg2any.generate.model import read_small_files
    from seg2any.training.token_counts import map_path, origin_of

    path = map_path(settings)
    patch, tokenizer = read_small_files(settings.model.pretrained_model_name_or_path, settings.model.base_parts)
    section, on_error = settings.data.train, settings.data.on_error
    name = data_set_name(section.type, section.target)
    data = open_data_set(name, section.params, on_error)
    origin = origin_of(data, tokenizer, patch, settings)
    counter = RowCounter(data, tokenizer, origin, on_error)
    print(make_map(path, counter, counting, workers, show_progress=process.is_first))
    if Parts(path, origin).is_finished():
        check_unreadable(name, data, BucketMap.read(path, origin), path, on_error)


def with_shard(shard: str, process: Process) -> Process:
    """Number `process` among the processes of all shards; `shard` is "i/n" as in --shard.

    Raises UserError for a malformed or impossible shard.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    number, shards = map(int, match.groups()) if match else (0, 0)
    if number >= shards:
        raise UserError(f"--shard {shard}: this is not i/n with i from 0 to n - 1; give for example 0/8")
    return Process(number * process.count + process.index, shards * process.count)
