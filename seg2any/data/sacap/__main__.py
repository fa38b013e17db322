"""Run `python -m seg2any.data.sacap plan`, `extract` or `verify`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from seg2any.data.sacap.extract import extract
from seg2any.data.sacap.options import parse_options
from seg2any.data.sacap.plan import beside, needs, scan, table, write_links, write_tar_list
from seg2any.data.sacap.report import Problem, summary, write_report
from seg2any.data.sacap.subset import Subset, in_groups
from seg2any.data.sacap.table import Annotations, read_annotations, write_rows
from seg2any.data.sacap.tars import find_tars
from seg2any.data.sacap.verify import delete_broken, verify, whole_rows
from seg2any.system.console import exit_status
from seg2any.system.errors import UserError
from seg2any.system.interrupts import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, by default this process's.

    Exit status: 0 everything is whole, 1 something is missing or broken, 2 wrong input, 130 interrupted.
    """
    options = parse_options(arguments)
    advice = "the files written so far are whole; start again to go on"
    return exit_status("sacap", lambda: COMMANDS[options.command](options), advice)


def run_plan(options: Namespace) -> int:
    """Choose rows, and write them and the list of tars they need.

    Exit status 1 if a tar at hand lacks any of them.
    """
    annotations = _read(options.annotations)
    tars = find_tars(options.tar_dir)
    subset = Subset(options.groups, tuple(options.regions), options.limit, options.pick, options.seed)
    chosen = subset.choose(annotations, tars.keys() if options.only_present else None)
    if annotations.groups == ("",):
        raise UserError(
            f"{options.annotations}: the column image_group is missing, so no tar is known; give the train split"
        )
    lines, lacking = scan(annotations, chosen, tars, options.workers) if options.scan else ([], 0)
    tar_needs = needs(annotations, chosen, tars)
    print("\n".join([*table(tar_needs), *lines]))
    write_rows(options.annotations, options.output, chosen, annotations.sizes)
    write_tar_list(beside(options.output, "tars.tsv"), tar_needs)
    print(f"wrote {options.output} and {beside(options.output, 'tars.tsv')}")
    if options.links:
        unknown = write_links(options.links, beside(options.output, "links.txt"), tar_needs)
        print(f"wrote {beside(options.output, 'links.txt')}")
        if unknown:
            print(f"{len(unknown)} tars have no link in {options.links}, the first is {unknown[0]}")
    return 1 if lacking else 0


def run_extract(options: Namespace) -> int:
    """Extract images. Exit status 1 if some are missing or broken. Raises UserError."""
    annotations = _read(options.annotations)
    if annotations.groups == ("",):
        raise UserError(
            f"{options.annotations}: the column image_group is missing, so no tar is known; give the train split"
        )
    chosen = in_groups(annotations, options.groups)
    problems = extract(annotations, chosen, options.tar_dir, options.output, options.workers)
    return _conclude(options, int(chosen.sum()), problems, f"are in {options.output}")


def run_verify(options: Namespace) -> int:
    """Check images. Exit status 1 if some are missing or broken. Raises UserError."""
    annotations = _read(options.annotations)
    chosen = in_groups(annotations, options.groups)
    problems = verify(annotations, chosen, options.root, options.workers)
    status = _conclude(options, int(chosen.sum()), problems, "are whole")
    if options.output:
        whole = whole_rows(annotations, chosen, problems)
        write_rows(options.annotations, options.output, whole, annotations.sizes)
        print(f"wrote the {int(whole.sum()):,} whole images to {options.output}")
    if options.delete_broken:
        print(f"removed {delete_broken(options.root, problems):,} broken images")
    return status


def _read(path: Path) -> Annotations:
    """Read the annotation file, and print which of its rows cannot be used."""
    annotations = read_annotations(path)
    print("\n".join(annotations.left_out()), end="\n" if annotations.faults.any() else "")
    return annotations


def _conclude(options: Namespace, wanted: int, problems: list[Problem], outcome: str) -> int:
    bad = {(problem.group, problem.image): problem.missing for problem in sorted(problems, key=lambda p: not p.missing)}
    missing = sum(bad.values())
    print(f"{wanted - len(bad):,} of {wanted:,} images {outcome}; {missing:,} missing, {len(bad) - missing:,} broken")
    print("\n".join(summary(problems)), end="\n" if problems else "")
    if options.report:
        write_report(options.report, problems)
        print(f"wrote {options.report}")
    return 1 if problems else 0


COMMANDS = {"plan": run_plan, "extract": run_extract, "verify": run_verify}

if __name__ == "__main__":
    run_command(main)
