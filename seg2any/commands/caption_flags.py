"""The flags that say where captions come from, of `annotate` and of `segment`."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from seg2any.system.arguments import Parser
from seg2any.system.console import whole
from seg2any.system.errors import UserError
from seg2any.system.shipped import input_path, model_name

if TYPE_CHECKING:
    from seg2any.annotate.plan import Captions

ENDPOINT, LOCAL, PHRASES, FILE = SOURCES = ("endpoint", "local", "phrases", "file")
NEEDED = {ENDPOINT: ("endpoint", "caption_model"), FILE: ("caption_file",)}
READ_BY = {"endpoint": (ENDPOINT,), "caption_model": (ENDPOINT, LOCAL), "caption_file": (FILE,)}


def add_caption_flags(parser: Parser, default: str | None, about: str) -> None:
    """Add the flags in a group of their own.

    about  what --help says of --captions
    """
    captions = parser.add_argument_group("captions", "the key of an endpoint is read from OPENAI_API_KEY")
    captions.add_argument("--captions", choices=SOURCES, default=default, help=about)
    captions.add_argument("--endpoint", metavar="URL", help="OpenAI-compatible, such as http://localhost:8000/v1")
    captions.add_argument("--caption_model", type=model_name, help="name at the endpoint; or folder or hub id")
    captions.add_argument("--caption_file", type=input_path, help=".parquet as SACap's, or .jsonl")
    captions.add_argument("--concurrency", type=whole(1), default=16, help="questions open at a time (default: 16)")


def check_captions(given: Namespace) -> None:
    """Raise UserError for flags that a source of captions lacks, and for those that it does not read."""
    if lacking := [name for name in NEEDED.get(given.captions, ()) if getattr(given, name) is None]:
        raise UserError(f"--captions {given.captions}: --{lacking[0]} is missing; give it")
    for name, sources in READ_BY.items():
        if getattr(given, name) is not None and given.captions not in sources:
            if given.captions is None:
                raise UserError(f"--{name}: is read with --captions {' or '.join(sources)} only; give that, too")
            raise UserError(f"--{name}: --captions {given.captions} does not read it; leave it out")


def captions_of(given: Namespace, processes: int = 1) -> Captions:
    """Return the source of captions that the flags describe.

    processes  that ask the endpoint at a time
    """
    from seg2any.annotate.captions import SOURCE  # late, as the next: they take a second to import
    from seg2any.annotate.plan import Captions

    return Captions(
        kind=given.captions,
        model=given.caption_model or (SOURCE if given.captions == LOCAL else ""),
        url=given.endpoint or "",
        file=given.caption_file,
        device=given.device,
        concurrency=max(1, given.concurrency // processes),
    )
