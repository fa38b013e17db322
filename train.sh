#!/usr/bin/env bash
# Train Seg2Any as published, one function per data set: 4 GPUs x 4 images, 20,000 steps.
#
#   PROCESSES=4 bash train.sh ade20k
#   PROCESSES=4 bash train.sh coco_stuff
#   PROCESSES=4 bash train.sh sacap_1m
#   bash train.sh sacap_1m config/memory_24gb.yaml           on one GPU of 24 GB
#   bash train.sh shapes                                     offline on a CPU, with the model in examples/shapes
#
# Further arguments go to train.py: bash train.sh ade20k --trainer.learning_rate=5e-5. After an interruption, add
# --resume_from_checkpoint=latest to the same command. With another number of GPUs, set --trainer.train_batch_size and
# --trainer.gradient_accumulation_steps so that the number of samples per step stays the same.
#
#   PROCESSES  number of GPUs, over all machines (1)
#   LAUNCHER   config/accelerate.yaml: DDP, or sharded frozen weights with --trainer.shard_base=true (default);
#              config/deepspeed_stage2.yaml: ZeRO-2
#   MACHINES   further options of `accelerate launch`        PYTHON   Python to run (.venv/bin/python if it exists)
#
# On several machines, run the same command on each, with the address of the first machine and the machine's own rank;
# project.output_dir must be on a shared disk. This is the command on the first of 2 machines with 8 GPUs each; on the
# second, --machine_rank is 1:
#
#   PROCESSES=16 MACHINES="--num_machines 2 --machine_rank 0 --main_process_ip 10.0.0.1 --main_process_port 29500" \
#       bash train.sh sacap_1m
#
# Under Slurm, with one task per machine, the rank is $SLURM_NODEID and the address is
# $(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1).
set -euo pipefail
cd "$(dirname "$0")"

PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
PROCESSES=${PROCESSES:-1}
LAUNCHER=${LAUNCHER:-config/accelerate.yaml}

usage() { sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "$0"; }

# `exec` replaces this shell by train.py, so that stopping the script stops the training.
launch() {
    if [ "$PROCESSES" -gt 1 ]; then
        trap '' USR1  # the launcher would die of it; the processes of train.py hear it all the same
        # shellcheck disable=SC2086  # MACHINES holds several words
        exec "$PYTHON" -m accelerate.commands.launch --config_file "$LAUNCHER" --num_processes "$PROCESSES" \
            ${MACHINES:-} train.py "$@"
    else
        exec "$PYTHON" train.py "$@"
    fi
}

ade20k() { launch config/seg2any_ade20k.yaml "$@"; }

coco_stuff() { launch config/seg2any_coco_stuff.yaml "$@"; }

# The token counts of a million samples are computed once, on all cores, before training.
sacap_1m() {
    "$PYTHON" prepare_dataset_bucket_map.py config/seg2any_sacap_1m.yaml --data.train.params.is_group_bucket=True "$@"
    launch config/seg2any_sacap_1m.yaml --data.train.params.is_group_bucket=True "$@"
}

shapes() { launch config/seg2any_shapes.yaml "$@"; }

case "${1:-}" in
    ade20k | coco_stuff | sacap_1m | shapes) "$@" ;;
    -h | --help) usage ;;
    "") usage >&2; exit 2 ;;
    *) echo "train.sh: $1 is not a data set; choose ade20k, coco_stuff, sacap_1m or shapes" >&2; exit 2 ;;
esac
