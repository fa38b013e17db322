"""`doctor`: say what works on this machine, and the exact fix for what does not."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from seg2any.commands.finding import BAD, GOOD, Finding
from seg2any.generate.options import Options
from seg2any.system.arguments import Parser, call_of
from seg2any.system.console import exit_status, plain_messages
from seg2any.system.files import user_path
from seg2any.system.shipped import model_name

FLUX = Options().model
DESCRIPTION = """\
Look at Python, packages, torch, device, memory, attention kernels, threads, the model, access to gated weights, disk.
Each problem comes with its fix. Nothing is downloaded, no weights are loaded; only --online uses the network.
"""
EXAMPLES = """\
examples:
  before anything else
    {call}
  a model of one's own, and the disk that images go to
    {call} --pretrained_model_name_or_path /models/FLUX.1-dev --output_path /data/result
  may this machine download FLUX.1-dev?
    {call} --online
  in a script
    {call} --json > doctor.json || exit

Exit status: 0 no problem, 1 a problem (notes are none), 2 a wrong flag.
"""


def main(arguments: Sequence[str], program: str) -> int:
    """Run the command line; return 0 without a problem, 1 with one."""
    parser = Parser(prog=program, description=DESCRIPTION, epilog=EXAMPLES.format(call=call_of(program)))
    parser.add_argument(
        "--pretrained_model_name_or_path",
        metavar="MODEL",
        type=model_name,
        help=f"folder or hub id to look for (default: {FLUX}, which may be missing)",
    )
    parser.add_argument("--output_path", type=user_path, default=Path("."), help="folder for images (default: here)")
    parser.add_argument("--device", help="cuda, mps or cpu (default: the best one present)")
    parser.add_argument("--online", action="store_true", help="ask the hub whether the model may be downloaded")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    given = parser.parse_args(arguments)
    return exit_status(program, lambda: run(given))


@plain_messages()
def run(given: Namespace) -> int:
    """Print the findings, and return 1 if one is a problem."""
    found = []
    for finding in findings(given):
        found.append(finding)
        if not given.json:
            print(finding, flush=True)
    problems = sum(finding.state == BAD for finding in found)
    if given.json:
        print(json.dumps({"problems": problems, "findings": [*map(dataclasses.asdict, found)]}, indent=2))
    else:
        print(f"{problems} problem{'s' * (problems != 1)}, {sum(one.state not in (BAD, GOOD) for one in found)} notes")
    return int(problems > 0)


def findings(given: Namespace) -> Iterator[Finding]:
    """Yield every finding: the quick ones first; those that need torch only if it can be imported."""
    from seg2any.commands import doctor_installation as installation
    from seg2any.commands import doctor_machine as machine
    from seg2any.commands import doctor_model as models

    name = given.pretrained_model_name_or_path
    yield installation.python()
    yield from installation.packages()
    yield machine.threads()
    yield machine.disk(given.output_path)
    yield machine.disk(Path(tempfile.gettempdir()), use="temporary files")
    model = models.model(name or FLUX, is_asked_for=name is not None)
    yield model
    if model.state != GOOD:
        yield machine.disk(models.cache_folder(), machine.FLUX_GIB, "downloads")
    yield models.embedded()
    yield models.access(name or FLUX)
    if given.online:
        yield from models.online(name or FLUX)
    torch = installation.torch()
    yield torch
    if torch.state == BAD:
        return
    yield machine.device(given.device)
    yield machine.kernels(given.device)
    yield machine.memory()
    yield installation.pipeline()
