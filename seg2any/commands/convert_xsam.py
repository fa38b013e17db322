"""`convert-xsam`: the published weights of X-SAM as a folder of safetensors."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from seg2any.system.arguments import Parser, call_of
from seg2any.system.console import exit_status, plain_messages
from seg2any.system.errors import UserError
from seg2any.system.files import user_path
from seg2any.system.precision import PRECISIONS
from seg2any.system.shipped import input_path

PHI3 = "microsoft/Phi-3-mini-4k-instruct"
DESCRIPTION = """\
Turn pytorch_model.bin of X-SAM into a folder for `segment --method xsam`. Every weight is compared by name and shape
with the model that config.json describes, by default the published one; nothing is written unless all fit.

Tensors alone are read from the file, piece by piece, so it may be larger than the memory. The first stage, which has
no language model, becomes a folder for training.
"""
EXAMPLES = """\
examples:
  the weights of the paper, after `hf download hao9610/X-SAM` and `hf download {phi3}`
    {call} s3_mixed_finetune/NAME/pytorch_model.bin xsam
  what would be converted
    {call} s3_mixed_finetune/NAME/pytorch_model.bin --check

Exit status: 0 done, 2 wrong input; a folder that exists is never overwritten.
"""


def main(arguments: Sequence[str], program: str) -> int:
    """Run the command line; return 0, or 2 for wrong input."""
    examples = EXAMPLES.format(call=call_of(program), phi3=PHI3)
    parser = Parser(prog=program, description=DESCRIPTION, epilog=examples)
    parser.add_argument("source", type=input_path, metavar="IN", help="pytorch_model.bin, or a folder with its shards")
    parser.add_argument("target", type=user_path, nargs="?", metavar="OUT", help="the folder to write")
    parser.add_argument("--check", action="store_true", help="compare the weights only; write nothing")
    parser.add_argument("--config", type=input_path, help="config.json of the model (default: as published)")
    parser.add_argument("--tokenizer", default=PHI3, help="folder or hub id of the language model's (default: Phi-3's)")
    parser.add_argument("--weight_dtype", choices=PRECISIONS, default="bf16", help="of the result (default: bf16)")
    given = parser.parse_args(arguments)
    return exit_status(program, lambda: run(given))


@plain_messages()
def run(given: Namespace) -> None:
    """Compare, convert, and print what was found. Raises UserError."""
    if (given.target is None) != given.check:
        raise UserError("OUT: give the folder to write, or --check to write none")
    from seg2any.segment.xsam.config import XSamConfig, XSamSegmentorConfig  # late: transformers takes seconds
    from seg2any.segment.xsam.convert import compare, config_of, convert, open_published, wanted_shapes
    from seg2any.segment.xsam.folder import read_config
    from seg2any.segment.xsam.memory import predicted_line
    from seg2any.system.precision import dtype_of

    tensors = open_published(given.source)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    config = (
        config_of(shapes, str(given.source))
        if given.config is None
        else read_config(given.config, XSamConfig, XSamSegmentorConfig)
    )
    found = compare(shapes, wanted_shapes(config))
    if not found.fits:
        raise UserError(f"{given.source}: does not fit the model: {found}; {found.details()}; give its --config")
    print(found)
    if isinstance(config, XSamConfig):
        print(predicted_line(config, 8))  # as `segment` asks by default
    if given.check:
        return
    tokenizer = tokenizer_of(given, config) if isinstance(config, XSamConfig) else None
    convert(tensors, config, tokenizer, given.target, dtype_of(given.weight_dtype))
    print(f"{given.target}: written in {given.weight_dtype}")


def tokenizer_of(given: Namespace, config: object) -> object:
    """Load the language model's tokenizer and teach it the model's own tokens. Raises UserError."""
    from transformers import AutoTokenizer

    from seg2any.segment.xsam.folder import check_tokenizer
    from seg2any.segment.xsam.wordings import SPECIAL_TOKENS
    from seg2any.system.pretrained import pretrained_processor

    tokenizer = pretrained_processor(AutoTokenizer, given.tokenizer, "--tokenizer", PHI3)
    tokenizer.add_tokens(list(SPECIAL_TOKENS), special_tokens=True)
    check_tokenizer(tokenizer, config, f"--tokenizer {given.tokenizer}")
    return tokenizer
