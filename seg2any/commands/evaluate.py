"""`evaluate`: the programs that eval.sh and eval/ call, each by one word."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

from seg2any.commands.verbs import Verb, dispatch

PROGRAMS: Mapping[str, Verb] = {
    "shapes": Verb("seg2any.evaluation.shapes.__main__", "the benchmark of the embedded model: offline, on a CPU"),
    "shapes_masks": Verb("seg2any.evaluation.shapes.masks", "masks out of rendered scenes, by a model's attention"),
    "images": Verb("seg2any.evaluation.generate_image", "make the images of a benchmark"),
    "measure": Verb("seg2any.commands.evaluate_measure", "measure a folder of images"),
    "compare": Verb("seg2any.evaluation.compare", "compare two measured runs, number by number"),
    "report": Verb("seg2any.evaluation.report.__main__", "write a page with pictures about one run or several"),
    "ablation": Verb("seg2any.evaluation.ablation.__main__", "compare adapters that were trained with other settings"),
    "coco_stuff_labels": Verb(
        "seg2any.evaluation.labels.convert_coco_stuff164k", "convert COCO-Stuff's label maps to 171 classes"
    ),
    "label_size": Verb("seg2any.evaluation.labels.convert_labelsize_512", "stretch label maps to 512 x 512"),
}
EXAMPLES = """
examples:
    seg2any evaluate shapes --limit 8
    seg2any evaluate images config/seg2any_ade20k.yaml --lora_ckpt_path ckpt/ade20k/checkpoint-20000 \\
        --output_path result/ade20k --num_images_per_prompt 4
    seg2any evaluate measure result/ade20k
    seg2any evaluate compare result/a/evaluation.json result/b/evaluation.json

`seg2any evaluate PROGRAM --help` explains a program. `bash eval.sh ade20k` does the second and the third.
"""


def main(arguments: Sequence[str], program: str) -> int:
    """Run the program that the first word names; return its exit status."""

    def run(verb: Verb, rest: list[str], _: str) -> int:
        return importlib.import_module(verb.module).main(rest)

    return dispatch(arguments, PROGRAMS, program, EXAMPLES, run)
