"""Count the tokens of every training sample, so that batches of equal length can be formed.

    python prepare_dataset_bucket_map.py config/seg2any_sacap_1m.yaml --data.train.params.is_group_bucket=True
    torchrun --nproc_per_node 4 prepare_dataset_bucket_map.py config/seg2any_sacap_1m.yaml --workers 8
    python prepare_dataset_bucket_map.py config/seg2any_sacap_1m.yaml --shard 3/16

CONFIG.yaml ... and --section.key=value are those of train.py. The map is written into data.train.params.cache_root, for
data sets without one into trainer.cache_dir. A run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os

from seg2any.system.console import exit_status, plain_messages
from seg2any.system.errors import UserError
from seg2any.system.interrupts import run_command
from seg2any.system.processes import Process


def main() -> int:
    """Exit status: 0 done, 1 out of memory, 2 wrong input, 130 interrupted."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s CONFIG.yaml ... [--section.key=value ...] [--workers N] [--shard i/n]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--workers", type=int, help="processes; by default one per core, shared by torchrun's processes"
    )
    parser.add_argument(
        "--shard", default="0/1", help="i/n: count one n-th, i from 0; the last to finish writes the map"
    )
    options, arguments = parser.parse_known_args()
    return exit_status(parser.prog, lambda: run(options, arguments), "run the same command again to go on")


@plain_messages()
def run(options: argparse.Namespace, arguments: list[str]) -> None:
    """Count what this process has to, and say where the map is. Raises UserError."""
    if not arguments:
        raise UserError("no config is given; see --help")
    from seg2any.training import config

    settings = config.load(arguments)
    from seg2any.data import bucket_map, catalog, count_map  # late: a typing mistake comes before anything is loaded
    from seg2any.data.count_rows import RowCounter
    from seg2any.data.unreadable import check_unreadable
    from seg2any.generate.model import read_small_files

    path = bucket_map.map_path(settings)
    process = Process.of(os.environ)
    counting = count_map.with_shard(options.shard, process)
    workers = count_map.number_of_workers(options.workers, process)
    patch, tokenizer = read_small_files(settings.model.pretrained_model_name_or_path)
    section, on_error = settings.data.train, settings.data.on_error
    name = catalog.data_set_name(section)
    data = catalog.open_data_set(name, section.params, on_error)
    origin = bucket_map.origin_of(data, tokenizer, patch, settings)
    counter = RowCounter(data, tokenizer, origin, on_error)
    print(count_map.count_map(path, counter, counting, workers, show_progress=process.is_first))
    if count_map.Parts(path, origin).is_finished():
        check_unreadable(name, data, bucket_map.BucketMap.read(path, origin), path, on_error)


if __name__ == "__main__":
    run_command(main)
