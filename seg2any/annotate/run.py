"""Make a set: look at all photos, leave out near duplicates, run the stages, write table, lists and card."""

from __future__ import annotations

import csv
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from seg2any.annotate.card import write_card
from seg2any.annotate.draft import Draft, Dropped
from seg2any.annotate.engine import Engine
from seg2any.annotate.journal import Journal
from seg2any.annotate.output import RAW, TABLE, files_of, write_table
from seg2any.annotate.photos import Photo, find_photos
from seg2any.annotate.plan import Plan, stages_of
from seg2any.annotate.rules import check_size
from seg2any.annotate.similar import copies
from seg2any.annotate.stages import DROPPED, FAILED, KEPT, Outcome
from seg2any.system.console import write_line
from seg2any.system.errors import UserError
from seg2any.system.files import RUNNING, atomic_write, locked, remove_stale

JOURNAL, LEFT_OUT = "journal.jsonl", "left_out.tsv"
HOPELESS = 50  # photos in a row that fail, until the run stops
ROUNDS = 3  # of an engine over what it has lost


@dataclass(frozen=True)
class Summary:
    """The ends of all photos.

    kept     number of photos in the set
    dropped  rule -> number of photos
    failed   outcomes of those that could not be used
    """

    kept: int
    dropped: Counter[str]
    failed: Sequence[Outcome]


def make_set(plan: Plan, places: Sequence[Path], engine: Engine) -> Summary:
    """Make or go on with the set of `plan` from the photos in `places`.

    Raises UserError for settings that differ from those of the set, and if no photo can be used.
    """
    plan.root.mkdir(parents=True, exist_ok=True)
    with _alone(plan.root):
        journal = Journal(plan.root / JOURNAL, plan.settings)
        photos = find_photos(places, journal.names)
        _forget_lost(plan.root, journal, photos)
        ended = _look(journal, photos, engine)
        ended |= _left_out_early(journal, [photo for photo in photos if photo.key not in ended], plan)
        todo = [photo for photo in photos if photo.key not in ended and journal.state(photo.key) is None]
        print(f"{len(photos):,} photos, {len(ended):,} left out at first sight, {len(todo):,} to annotate", flush=True)
        drafts = [Draft(photo, journal.looks[photo.key].size) for photo in todo]
        ended |= {one.key: one for one in _run(journal, drafts, plan, engine) if one.state == FAILED}
        return _conclude(journal, photos, ended, plan)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    with locked(root / RUNNING) as is_ours:
        if not is_ours:
            raise UserError(f"{root}: another run is writing into it; wait for it, or choose another --output")
        yield


def start_anew(root: Path) -> None:
    """Remove what an earlier run has written. Raises UserError for a folder that no run has written."""
    if not (root / JOURNAL).exists():
        if root.exists() and any(path.name != RUNNING for path in root.iterdir()):
            raise UserError(f"--overwrite {root}: no run has written this folder; choose another --output")
        return
    with _alone(root):
        shutil.rmtree(root / RAW, ignore_errors=True)
        for name in (TABLE, LEFT_OUT, JOURNAL):
            (root / name).unlink(missing_ok=True)


def _forget_lost(root: Path, journal: Journal, photos: Sequence[Photo]) -> None:
    """Make photos again whose files are gone; remove what killed writers left."""
    if not (root / RAW).is_dir():
        folders: dict[Path, set[str]] = {}
    else:
        folders = {folder: {*names} for folder, _, names in _walk(root / RAW)}
    for folder in folders:
        remove_stale(folder)
    kept = [photo.key for photo in photos if journal.state(photo.key) == KEPT]
    for outcome in journal.outcomes(kept):
        photo, document = files_of(root, outcome)
        if not folders.get(photo.parent, set()) >= {photo.name, document.name}:
            journal.forget(outcome.key)


def _walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    return ((Path(folder), folders, names) for folder, folders, names in os.walk(root))


def _look(journal: Journal, photos: Sequence[Photo], engine: Engine) -> dict[str, Outcome]:
    """Look at photos that nobody has looked at; return those that cannot be read."""
    todo = [photo for photo in photos if not _is_known(journal, photo)]
    failed: dict[str, Outcome] = {}
    with tqdm(total=len(photos), initial=len(photos) - len(todo), desc="look", unit="photo") as bar:
        for found in engine.looks(todo):
            journal.add_looks({key: one for key, one in found.items() if not isinstance(one, str)})
            for key, fault in found.items():
                if isinstance(fault, str):
                    failed[key] = _failed(Outcome(key, FAILED, "look", fault))
            bar.update(len(found))
    return failed


def _is_known(journal: Journal, photo: Photo) -> bool:
    look = journal.looks.get(photo.key)
    try:
        return look is not None and look.bytes == Path(photo.path).stat().st_size
    except OSError:
        return False


def _left_out_early(journal: Journal, photos: Sequence[Photo], plan: Plan) -> dict[str, Outcome]:
    """Leave out photos by size, and near duplicates: of those alike a finished one stays, else the largest."""
    found: dict[str, Outcome] = {}
    for photo in photos:
        try:
            check_size(journal.looks[photo.key], plan.rules)
        except Dropped as dropped:
            found[photo.key] = Outcome(photo.key, DROPPED, dropped.rule, dropped.detail)
    rest = [photo.key for photo in photos if photo.key not in found]
    if plan.rules.hash_distance < 0:
        return found

    def rank(key: str) -> tuple[bool, int, str]:
        height, width = journal.looks[key].size
        return journal.state(key) != KEPT, -height * width, key

    rest.sort(key=rank)
    for copy, first in copies([journal.looks[key].hash for key in rest], plan.rules.hash_distance).items():
        found[rest[copy]] = Outcome(rest[copy], DROPPED, "hash_distance", f"nearly the same as {rest[first]}")
    return found


def _run(journal: Journal, drafts: Sequence[Draft], plan: Plan, engine: Engine) -> list[Outcome]:
    """Run the stages on all drafts, and again on those that an engine has lost; return all outcomes."""
    ended: dict[str, Outcome] = {}
    row, stages = 0, stages_of(plan)
    with tqdm(total=len(drafts), desc="annotate", unit="photo") as bar:
        for _ in range(ROUNDS):
            todo = [draft for draft in drafts if draft.photo.key not in ended]
            if not todo:
                break
            for outcome in engine.outcomes(todo, stages):
                if outcome.key in ended:  # a node died after its work had arrived, and another did it again
                    continue
                ended[outcome.key] = outcome
                journal.add(outcome)
                row = row + 1 if outcome.state == FAILED else 0
                if outcome.state == FAILED:
                    _failed(outcome)
                if row >= HOPELESS:
                    raise UserError(
                        f"{row} photos in a row failed, the last in {outcome.reason}: {outcome.detail}; mend that and "
                        "start again, what is finished is kept"
                    )
                bar.update()
    for draft in drafts:
        if draft.photo.key not in ended:
            ended[draft.photo.key] = _failed(Outcome(draft.photo.key, FAILED, "engine", "it was lost; start again"))
    return list(ended.values())


def _failed(outcome: Outcome) -> Outcome:
    where = "" if outcome.key in outcome.detail else f"{outcome.key}: "
    write_line(f"failed in {outcome.reason}: {where}{outcome.detail}")
    return outcome


def _conclude(journal: Journal, photos: Sequence[Photo], ended: dict[str, Outcome], plan: Plan) -> Summary:
    """Write the table, the list of what is left out, and the card."""
    rest = [photo.key for photo in photos if photo.key not in ended]
    kept = [key for key in rest if journal.state(key) == KEPT]
    left_out = sorted(
        [*ended.values(), *journal.outcomes(key for key in rest if journal.state(key) == DROPPED)], key=_key
    )
    write_table(plan.root, journal.outcomes(kept))
    _write_list(plan.root / LEFT_OUT, left_out)
    dropped = Counter(one.reason for one in left_out if one.state == DROPPED)
    failed = [one for one in left_out if one.state == FAILED]
    summary = Summary(len(kept), dropped, failed)
    write_card(plan, journal.outcomes(kept), summary.dropped, len(failed))
    if not kept:
        first = left_out[0]
        raise UserError(
            f"{plan.root}: none of {len(photos)} photos is left; the first, {first.key}, was {first.state} by "
            f"{first.reason} ({first.detail}); see {LEFT_OUT} there, and change the rules"
        )
    return summary


def _key(outcome: Outcome) -> str:
    return outcome.key


def _write_list(path: Path, outcomes: Sequence[Outcome]) -> None:
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(["photo", "state", "by", "detail"])
        table.writerows([one.key, one.state, one.reason, " ".join(one.detail.split())] for one in outcomes)
