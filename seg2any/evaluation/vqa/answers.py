"""Ask many questions once: answers are kept in a file, and missing ones are asked for again."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from seg2any.evaluation.vqa.questions import Question
from seg2any.system.errors import UserError
from seg2any.system.files import append_lines
from seg2any.system.json_text import parse_json
from seg2any.system.patience import NoAnswer, Patience, patiently


class Judge(Protocol):
    """A model that answers questions; `name` identifies the model and its settings."""

    name: str

    def answer(self, question: Question) -> dict:
        """Answer with {"yes": 0..1, ...} or {"colour", "shape", "texture"}, as the question wants.

        May be called from several threads. Raises NoAnswer if asking again may help, UserError if it cannot.
        """


class Answers:
    """A judge's answers in a file of JSON lines; each is on disk before it is used.

    Raises UserError if the file holds anything else.
    """

    def __init__(self, path: str | Path, judge: Judge):
        self.path, self.judge = Path(path), judge
        self._lock = threading.Lock()
        self._known = self._read()

    def get(self, question: Question) -> dict | None:
        """Look up an answer; None if there is none yet."""
        return self._known.get(self._id(question))

    def add(self, question: Question, answer: dict) -> None:
        """Keep an answer, on disk when this returns. May be called from any thread."""
        line = {"id": self._id(question), "key": question.key, "kind": question.kind, "text": question.text}
        with self._lock:
            append_lines(self.path, json.dumps(line | {"judge": self.judge.name, "answer": answer}))
            self._known[line["id"]] = answer

    def __len__(self) -> int:
        return len(self._known)

    def _id(self, question: Question) -> str:
        return hashlib.sha256(f"{self.judge.name}\n{question.id}".encode()).hexdigest()

    def _read(self) -> dict[str, dict]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return {}
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # a run was killed while it wrote a line
            with open(self.path, "r+b") as file:
                file.truncate(len(whole))
        try:
            return {line["id"]: dict(line["answer"]) for line in map(parse_json, whole.decode().splitlines())}
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self.path}: the file does not hold answers; give another path, or remove it") from None


def ask(
    questions: Iterable[Question], answers: Answers, concurrency: int = 8, patience: Patience | None = None
) -> Iterator[tuple[Question, dict | None]]:
    """Yield each question with its answer, in order; None if all attempts failed.

    Up to `concurrency` questions are open at a time, and equal ones are asked once. Raises UserError as the judge does,
    and when the judge does not answer any more.
    """
    asking = _Asking(answers, patience or Patience())
    waiting: deque[tuple[Question, Future | None]] = deque()
    pool = ThreadPoolExecutor(concurrency)
    try:
        for question in questions:
            waiting.append((question, asking.start(question, pool)))
            while len(waiting) > 4 * concurrency:
                yield asking.settle(*waiting.popleft())
        while waiting:
            yield asking.settle(*waiting.popleft())
    finally:
        asking.stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)


class _Asking:
    """The open questions."""

    def __init__(self, answers: Answers, patience: Patience):
        self.answers, self.patience = answers, patience
        self.stopped = threading.Event()
        self.open: dict[str, Future] = {}
        self.failures = 0  # in a row

    def start(self, question: Question, pool: ThreadPoolExecutor) -> Future | None:
        """Submit a question, unless it is answered already; then return None."""
        if self.answers.get(question) is not None:
            return None
        if question.id not in self.open:
            self.open[question.id] = pool.submit(self._ask, question)
        return self.open[question.id]

    def settle(self, question: Question, future: Future | None) -> tuple[Question, dict | None]:
        problem = None if future is None else future.result()
        self.open.pop(question.id, None)
        self.failures = 0 if problem is None else self.failures + 1
        if self.failures >= self.patience.hopeless:
            raise UserError(
                f"{self.answers.judge.name}: {self.failures} questions in a row have no answer, the last: {problem}; "
                "check the judge and start again, answers so far are kept"
            )
        return question, self.answers.get(question)

    def _ask(self, question: Question) -> str | None:
        """Ask until there is an answer. Returns the reason if there is none, else None."""
        judge = self.answers.judge
        try:
            self.answers.add(question, patiently(lambda: judge.answer(question), self.patience, self.stopped))
        except NoAnswer as none:
            return str(none)
        return None
