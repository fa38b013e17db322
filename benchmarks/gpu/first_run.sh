#!/usr/bin/env bash
# Run the first ten minutes on a lent GPU: bash benchmarks/gpu/first_run.sh
#
# The most important steps come first. Each step has a time limit; no step starts in the last 15 seconds of DEADLINE, none
# runs past it. All output is also written to $OUT/log.txt. benchmarks/gpu/README.md explains the numbers.
#
#   OUT       folder for the results (/tmp/out)        DEADLINE  time limit of the whole run in seconds (520)
#   PYTHON    Python to run (python3)                  SLOW      factor of every limit, for a rehearsal on a CPU (1)
#   SIZE      flux, or tiny for a rehearsal            DEVICE    cuda, or cpu for a rehearsal
#   NF4       set it to any value to train with nf4 weights too
set -uo pipefail
case "${1:-}" in
    "") ;;
    -h | --help) sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "$0"; exit 0 ;;
    *) echo "first_run.sh: $1 is not an argument; see --help" >&2; exit 2 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
OUT=${OUT:-/tmp/out} DEADLINE=${DEADLINE:-520} PYTHON=${PYTHON:-python3} SLOW=${SLOW:-1} SIZE=${SIZE:-flux} DEVICE=${DEVICE:-cuda}
mkdir -p "$OUT"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if compgen -G ".whl/*.whl" >/dev/null; then
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl || exit 1
    export PYTHONPATH=/tmp/site
fi
if [ "$SIZE" = tiny ]; then
    STEP=(--size tiny --sides 128) ATTENTION=(--tokens 256 --heads 2 --head_dim 16)
else
    STEP=(--size flux-dev --sides 512 1024) ATTENTION=(--tokens 4096)
fi
# step LIMIT NAME COMMAND ...
step() {
    local limit=$(($1 * SLOW)) name=$2 left=$((DEADLINE - SECONDS))
    shift 2
    if [ "$left" -lt 15 ]; then echo "== $name: skipped at second $SECONDS"; return; fi
    [ "$left" -lt "$limit" ] && limit=$left
    echo "== $name: starts at second $SECONDS, at most $limit s"
    timeout "$limit" "$@" 2>&1 | grep --line-buffered -v "^\[transformers\]\|gemm_4bit_forward"
    echo "== $name: status ${PIPESTATUS[0]}, ends at second $SECONDS"
}
CHECK=("$PYTHON" -m benchmarks.gpu --size "$SIZE" --device "$DEVICE")
{
    step 60 env "${CHECK[@]}" env new_shapes nan_repro int8_offload
    step 80 model "${CHECK[@]}" layouts launches autocast low_rank
    step 60 kernels "${CHECK[@]}" kernels merged
    step 80 step "$PYTHON" -m benchmarks.step "${STEP[@]}" --batch 1 --entities 8 20 --rounds 3 --image_steps 0 \
        --skip growth attention training --output "$OUT/step.json"
    step 90 train "${CHECK[@]}" train ${NF4:+train_nf4}
    step 110 flex "${CHECK[@]}" --seconds 60 flex oracle
    step 60 attention "$PYTHON" -m benchmarks.attention --device "$DEVICE" --dtype bf16 "${ATTENTION[@]}" \
        --entities 8 20 --backends auto sdpa grouped flex --rounds 10
    step 120 compiled "${CHECK[@]}" compiled
} 2>&1 | tee "$OUT/log.txt"
