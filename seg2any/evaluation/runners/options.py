"""The command line of `python -m seg2any.evaluation.runners`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seg2any.system.arguments import Parser
from seg2any.system.files import user_path

WEIGHTS = Path("weights")  # where the README says to put files that are not folders of transformers
DEEPLAB = "deeplabv3_r101-d8_512x512_4x4_320k_coco-stuff164k_20210709_155402-3cbca14d.pth"
# Flag of a judge -> where it is looked for by default, description.
JUDGES = {
    "inception": (str(WEIGHTS / "inception-2015-12-05.pt"), "TorchScript Inception of FID"),
    "cmmd_clip": ("openai/clip-vit-large-patch14-336", "CLIP of CMMD: folder or hub id"),
    "dinov2": ("facebook/dinov2-large", "DINOv2 of FDD: folder or hub id"),
    "clip": ("openai/clip-vit-base-patch16", "CLIP of the CLIP score and of leaks: folder or hub id"),
    "mask2former": ("facebook/mask2former-swin-large-ade-semantic", "judge of ADE20K: folder or hub id"),
    "deeplab": (str(WEIGHTS / DEEPLAB), "judge of COCO-Stuff: file of mmsegmentation"),
    "eomt": ("tue-mps/ade20k_semantic_eomt_large_512", "second judge of classes: folder or hub id"),
    "dinov3": ("facebook/dinov3-vitl16-pretrain-lvd1689m", "DINOv3 of its FDD: folder or hub id"),
    "sam3": ("facebook/sam3", "judge of concepts: folder or hub id"),
    "sam2": ("facebook/sam2.1-hiera-large", "judge of regions: folder or hub id"),
    "vqa": ("http://localhost:8000/v1", "judge of questions: OpenAI-compatible address, or a folder or hub id"),
    "image_reward": ("ImageReward-v1.0", "weights of ImageReward, by the name that its package uses"),
    "vqa_model": ("Qwen/Qwen3-VL-8B-Instruct", "name of the judge of questions at that address"),
}
# Judges of single images; the orders in which they put the samples are compared.
AGREEING = ("miou", "miou_eomt", "miou_segmenter", "regions", "language", "concept", "order", "vqa", "clip")
AGREEING += ("colour_leak", "caption_leak")
METRICS = (*AGREEING, "fid", "cmmd", "fdd", "fdd_dinov3", "seam")
METRICS += ("image_reward",)  # needs a package of its own
SEGMENTER = ("attention",)
VQA_MODES = ("soft", "published")
DEFAULTS = {  # data set -> metrics measured by default; the first one ranks the samples
    "ade20k": ("miou", "fid", "cmmd", "fdd", "seam"),
    "coco_stuff": ("miou", "fid", "cmmd", "fdd", "seam"),
    "sacap_1m": ("regions", "clip", "fid", "cmmd", "fdd", "seam", "caption_leak"),
    "overlaybench": ("order", "language", "concept", "regions", "clip"),
    "sa_z": ("order", "language", "concept", "regions", "clip"),
    "coco_mig": ("concept", "language", "colour_leak", "caption_leak"),
    "folder": ("regions", "seam"),
}
DETAILS = """\
examples:
    python -m seg2any.evaluation.runners result/ade20k                       all metrics of the benchmark
    python -m seg2any.evaluation.runners result/ade20k --metrics miou seam   only these; the first one ranks the samples
    python -m seg2any.evaluation.runners result/sacap --metrics regions --sam2 /models/sam2.1 -o result/regions.json
    seg2any evaluate measure result/sacap --metrics language concept --segmenter attention threshold=0.4

Fetch judges with `hf download ID` or by hand; the README lists what each benchmark needs.
Exit status: 0 measured, 1 out of memory, 2 wrong input or missing weights, 130 interrupted.
"""


@dataclass(frozen=True)
class Options:
    """The measures of a run, and their judges.

    metrics     None: those of the data set
    cache_root  folder for what the data set keeps; None: it keeps nothing
    """

    images: Path
    output: Path
    metrics: tuple[str, ...] | None
    device: str | None
    cache_root: Path | None
    judges: dict[str, str]


def parse_options(arguments: Sequence[str] | None = None) -> Options:
    """Parse a command line, by default this process's."""
    parser = Parser(
        prog="python -m seg2any.evaluation.runners",
        description="Measure a folder of eval/generate_image.py: prints a table, writes JSON, pictures and a page.",
        epilog=DETAILS,
    )
    parser.add_argument("images", type=user_path, help="folder that seg2any/evaluation/generate_image.py made")
    parser.add_argument("-o", "--output", type=user_path, help="JSON file (default: IMAGES/evaluation.json)")
    parser.add_argument(
        "--metrics",
        nargs="+",
        choices=METRICS,
        help="what to measure; the first one ranks the samples (default: all metrics of the benchmark)",
    )
    parser.add_argument("--device", help="cuda, mps or cpu (default: the best one present)")
    parser.add_argument(
        "--cache_root", type=user_path, help="folder where the data set keeps what it found out about its files"
    )
    parser.add_argument(
        "--segmenter",
        nargs="+",
        default=SEGMENTER,
        metavar=("METHOD", "FLAG=VALUE"),
        help="method of `seg2any segment` that is asked in words, with its flags (default: attention)",
    )
    parser.add_argument(
        "--vqa_mode",
        choices=VQA_MODES,
        default=VQA_MODES[0],
        help="soft: probabilities of yes, only about what a caption says; published: CreatiLayout's prompts, yes or no "
        "(default: %(default)s)",
    )
    for flag, (default, what) in JUDGES.items():
        parser.add_argument(f"--{flag}", default=default, help=f"{what} (default: %(default)s)")
    given = parser.parse_args(arguments)
    return Options(
        given.images,
        given.output or given.images / "evaluation.json",
        tuple(given.metrics) if given.metrics else None,
        given.device,
        given.cache_root,
        {flag: getattr(given, flag) for flag in JUDGES}
        | {"segmenter": " ".join(given.segmenter), "vqa_mode": given.vqa_mode},
    )
