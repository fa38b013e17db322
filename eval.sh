#!/usr/bin/env bash
# Run a benchmark: generate its images, measure them with 95 % intervals, and write a page with pictures.
#
#   bash eval.sh shapes                                      offline on a CPU, with the model in examples/shapes
#   bash eval.sh shapes_masks                                masks out of images, by the same model
#   bash eval.sh shapes_coloring                             instances painted by adapters, beside baselines
#   COLORING=ckpt/coloring/checkpoint-30000 bash eval.sh coco_points
#   bash eval.sh xsam_shapes                                 what understands words, by the small model of examples/shapes/xsam
#   MODEL=my_xsam bash eval.sh xsam_refcoco                  and xsam_refcoco_plus, xsam_refcocog, xsam_reasoning,
#       xsam_grounded, xsam_coco_panoptic, xsam_ade_panoptic
#   DATA=data/VOC2012 bash eval.sh voc20 --classes present all none    also coco_object, pc59, ade150, cityscapes
#   LORA=ckpt/ade20k/checkpoint-20000 bash eval.sh ade20k
#   LORA=ckpt/coco_stuff/checkpoint-20000 bash eval.sh coco_stuff
#   LORA=ckpt/sacap_1m/checkpoint-20000 PROCESSES=4 bash eval.sh sacap
#
#   LORA=ckpt/sacap_1m/checkpoint-20000 bash eval.sh overlaybench      order and crowding, as sa_z; coco_mig: colours
#
# Further arguments go to eval/generate_image.py, for shapes to `python -m seg2any.evaluation.shapes`:
# bash eval.sh ade20k --limit 100
# After an interruption, the same command continues. The README's section on evaluation lists what to download.
#
#   MODEL      folder or hub id of FLUX.1-dev        LORA       folder with default/ and cond/
#   OUT        folder for results (result/NAME)      PROCESSES  number of GPUs that generate (1)
#   JUDGES     flags of `seg2any evaluate measure`, such as "--sam2 /models/sam2.1" or "--metrics miou fid"
#   COLORING   folder of adapters of task coloring, or a published painter: reachomk/gen2seg-sd; for the model in this
#              repository examples/shapes/lora_coloring
#   DATA       folder of the images and layouts of a benchmark of points (data/NAME), or of a label set such as voc20
#   CONFIG     config to use instead of config/seg2any_NAME.yaml
#   PYTHON     Python to run (.venv/bin/python if it exists)
set -euo pipefail
cd "$(dirname "$0")"

PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
PROCESSES=${PROCESSES:-1}

usage() { sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "$0"; }

fail() { echo "eval.sh: $1" >&2; exit 2; }

# The launcher's options must come before -m: it passes everything after the module's name to the module. Its static
# rendezvous unpickles nothing that its port receives; that of --standalone does.
launch() {
    if [ "$PROCESSES" -gt 1 ]; then
        local port
        port=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
        "$PYTHON" -m torch.distributed.run --rdzv_backend static --master_addr 127.0.0.1 --master_port "$port" \
            --nproc_per_node "$PROCESSES" -m "$@"
    else
        "$PYTHON" -m "$@"
    fi
}

# benchmark NAME CONFIG [arguments of generate_image ...]
benchmark() {
    local out=${OUT:-result/$1} config=${CONFIG:-$2}
    shift 2
    [ -n "${LORA:-}" ] || fail "LORA is not set; set it to the folder that contains default/ and cond/"
    launch seg2any.evaluation.generate_image "$config" --pretrained_model_name_or_path "${MODEL:-black-forest-labs/FLUX.1-dev}" \
        --lora_ckpt_path "$LORA" --output_path "$out" "$@"
    # shellcheck disable=SC2086  # JUDGES holds several words
    "$PYTHON" -m seg2any evaluate measure "$out" ${JUDGES:-}
}

# As published: 512 px, 4 images per layout, 32 steps, guidance 3.5, seed 42; --published_jpeg writes the published files.
ade20k() { benchmark ade20k config/seg2any_ade20k.yaml --num_images_per_prompt 4 "$@"; }

coco_stuff() { benchmark coco_stuff config/seg2any_coco_stuff.yaml --num_images_per_prompt 4 "$@"; }

# As published: SACap-Eval, 1024 px, 1 image per layout.
sacap() { benchmark sacap config/seg2any_sacap_1m.yaml --num_images_per_prompt 1 "$@"; }

# Layout sets: boxes that overlap much, regions in an order, and colours drawn by lot; 1 image per layout, as sacap.
overlaybench() { benchmark overlaybench config/seg2any_overlaybench.yaml --num_images_per_prompt 1 "$@"; }

sa_z() { benchmark sa_z config/seg2any_sa_z.yaml --num_images_per_prompt 1 "$@"; }

coco_mig() { benchmark coco_mig config/seg2any_coco_mig.yaml --num_images_per_prompt 1 "$@"; }

# 200 scenes with 1 to 8 figures and 40 crowded ones, minutes on two cores, then 40 of them by segmenters, which find the
# regions again. --limit 8 is a quick look.
shapes() {
    own_painter
    local given=(--model "${MODEL:-examples/shapes/model}" --output "${OUT:-result/shapes}")
    HF_HUB_OFFLINE=1 "$PYTHON" -m seg2any.evaluation.shapes "${given[@]}" --lora "${LORA:-examples/shapes/lora}" "$@"
    HF_HUB_OFFLINE=1 "$PYTHON" -m seg2any.evaluation.shapes.segmenters "${given[@]}" ${COLORING:+--coloring "$COLORING"}
    [ -z "${COLORING:-}" ] || shapes_coloring --limit 40
}

# The adapters in this repository fit the model in this repository only.
own_painter() { [ -n "${MODEL:-}" ] || COLORING=${COLORING:-examples/shapes/lora_coloring}; }

# Instances painted by adapters: one point, phrases, everything; beside baselines. --limit 8 is a quick look.
shapes_coloring() {
    own_painter
    [ -n "${COLORING:-}" ] || fail "COLORING is not set; set it to adapters of task coloring"
    HF_HUB_OFFLINE=1 "$PYTHON" -m seg2any.evaluation.shapes.coloring --model "${MODEL:-examples/shapes/model}" \
        --lora "$COLORING" "$@"
}

# one_point NAME [arguments of seg2any.commands.one_point ...]: data/NAME holds images/ and layouts/, or a COCO file
# layouts.json. `seg2any layouts` converts label maps.
one_point() {
    local data=${DATA:-data/$1} painter
    shift
    [ -n "${COLORING:-}" ] || fail "COLORING is not set; set it to adapters of task coloring, or to a published painter"
    painter=(--painter "$COLORING")
    [ ! -d "$COLORING/default" ] ||
        painter=(--lora_ckpt_path "$COLORING" --pretrained_model_name_or_path "${MODEL:-black-forest-labs/FLUX.1-dev}")
    local layouts=$data/layouts
    [ ! -f "$layouts.json" ] || layouts=$layouts.json
    "$PYTHON" -m seg2any.commands.one_point "$data/images" "$layouts" "${painter[@]}" "$@"
}

# The benchmarks of gen2seg, by the deepest pixel of each region.
coco_points() { one_point coco --area large medium "$@"; }

ishape_points() { one_point ishape "$@"; }

pidray_points() { one_point pidray "$@"; }

dram_points() { one_point dram "$@"; }

egohos_points() { one_point egohos "$@"; }

# Masks out of 200 rendered scenes, by the model's attention; minutes on two cores. --limit 8 is a quick look.
shapes_masks() {
    HF_HUB_OFFLINE=1 "$PYTHON" -m seg2any.evaluation.shapes.masks --model "${MODEL:-examples/shapes/model}" "$@"
}

# xsam BENCHMARK [arguments of seg2any.evaluation.words ...]
xsam() {
    local name=$1
    shift
    [ -n "${MODEL:-}" ] || fail "MODEL is not set; set it to the folder of an X-SAM model"
    "$PYTHON" -m seg2any.evaluation.words "$name" --model "$MODEL" --output "${OUT:-result/xsam}" "$@"
}

# Phrases: --images train2014 --annotations finetune_refcoco_val.json
xsam_refcoco() { xsam refcoco "$@"; }

xsam_refcoco_plus() { xsam refcoco+ "$@"; }

xsam_refcocog() { xsam refcocog "$@"; }

# Questions: --images ReasonSeg/val
xsam_reasoning() { xsam reasoning "$@"; }

# Descriptions: --images GranDf --annotations MASKS.json --captions CAPTIONS.json
xsam_grounded() { xsam grounded "$@"; }

# Every pixel: --images val2017 --annotations panoptic_val2017.json --labels panoptic_val2017
xsam_coco_panoptic() { xsam coco_panoptic "$@"; }

# Likewise; open vocabulary, since X-SAM was not trained on ADE20K.
xsam_ade_panoptic() { xsam ade_panoptic "$@"; }

# 200 rendered scenes, with keywords and colours beside the phrases.
xsam_shapes() { MODEL=${MODEL:-examples/shapes/xsam} xsam shapes "$@"; }

# Masks out of photos with known labels, by attention: open_vocabulary SET FOLDER. Nothing is generated.
open_vocabulary() {
    local set=$1
    shift
    [ -n "${DATA:-}" ] || fail "DATA is not set; set it to the folder of $set, see docs/segment.md"
    "$PYTHON" -m seg2any.evaluation.segmentation "$set" --data "$DATA" --model "${MODEL:-black-forest-labs/FLUX.1-dev}" \
        --output "${OUT:-result}/$set.json" ${LORA:+--lora "$LORA"} "$@"
}

voc20() { open_vocabulary voc20 "$@"; }

coco_object() { open_vocabulary coco_object "$@"; }

pc59() { open_vocabulary pc59 "$@"; }

ade150() { open_vocabulary ade150 "$@"; }

cityscapes() { open_vocabulary cityscapes "$@"; }

case "${1:-}" in
    ade20k | coco_stuff | sacap | overlaybench | sa_z | coco_mig | shapes | shapes_masks) "$@" ;;
    shapes_coloring | coco_points | ishape_points | pidray_points | dram_points | egohos_points) "$@" ;;
    xsam_refcoco | xsam_refcoco_plus | xsam_refcocog | xsam_reasoning | xsam_grounded) "$@" ;;
    xsam_coco_panoptic | xsam_ade_panoptic | xsam_shapes) "$@" ;;
    voc20 | coco_object | pc59 | ade150 | cityscapes) "$@" ;;
    -h | --help) usage ;;
    "") usage >&2; exit 2 ;;
    *) fail "$1 is not a benchmark; choose ade20k, coco_stuff, sacap, overlaybench, sa_z, coco_mig, shapes, shapes_masks, shapes_coloring, NAME_points, xsam_NAME, voc20, coco_object, pc59, ade150 or cityscapes" ;;
esac
