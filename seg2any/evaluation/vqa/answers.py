"""Asking many questions once: answers are kept in a file, retried where there was none, and never counted twice."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from seg2any.evaluation.vqa.questions import Question
from seg2any.system.errors import UserError


class NoAnswer(Exception):
    """The judge gave no usable answer, though it might if asked again, not before `wait` seconds have passed."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


class Judge(Protocol):
    """`name` says which model with which settings; other names are other answers."""

    name: str

    def answer(self, question: Question) -> dict:
        """{"yes": 0..1, ...} or {"colour": ..., "shape": ..., "texture": ...}, as the question wants.

        Raises NoAnswer if asking again may help, UserError if it cannot. May be called from several threads.
        """


@dataclass(frozen=True)
class Patience:
    """How a question is asked again: `attempts` in all, waiting `first_wait` seconds, then twice as long, and so on.
    After `hopeless` questions in a row without an answer none is asked any more."""

    attempts: int = 5
    first_wait: float = 1.0
    longest_wait: float = 60.0
    hopeless: int = 20


class Answers:
    """The answers of a judge in a file of JSON lines; every one is on disk before it is used.

    Raises UserError if the file is none of ours.
    """

    def __init__(self, path: str | Path, judge: Judge):
        self.path, self.judge = Path(path), judge
        self._lock = threading.Lock()
        self._known = self._read()

    def get(self, question: Question) -> dict | None:
        """What was answered, None if nothing yet."""
        return self._known.get(self._id(question))

    def add(self, question: Question, answer: dict) -> None:
        """Keep an answer, on disk when this returns. From any thread."""
        line = {"id": self._id(question), "key": question.key, "kind": question.kind, "text": question.text}
        with self._lock, open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line | {"judge": self.judge.name, "answer": answer}) + "\n")
            file.flush()
            os.fsync(file.fileno())
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
        if len(whole) < len(content):  # a line that was being written when the run was killed
            with open(self.path, "r+b") as file:
                file.truncate(len(whole))
        try:
            return {line["id"]: dict(line["answer"]) for line in map(json.loads, whole.decode().splitlines())}
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self.path}: holds no answers; give another path, or remove it") from None


def ask(
    questions: Iterable[Question], answers: Answers, concurrency: int = 8, patience: Patience | None = None
) -> Iterator[tuple[Question, dict | None]]:
    """Each question with its answer, in order; None where there was none after all attempts.

    Up to `concurrency` questions are open at a time, and equal ones are asked once. Raises UserError as the judge does,
    and if there are no answers any more.
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
    """The questions that are open."""

    def __init__(self, answers: Answers, patience: Patience):
        self.answers, self.patience = answers, patience
        self.stopped = threading.Event()
        self.open: dict[str, Future] = {}
        self.failures = 0  # in a row

    def start(self, question: Question, pool: ThreadPoolExecutor) -> Future | None:
        """None for a question that is answered already."""
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
                "see to the judge and start again, answers so far are kept"
            )
        return question, self.answers.get(question)

    def _ask(self, question: Question) -> str | None:
        """Ask until there is an answer; why there is none, otherwise."""
        wait, problem = self.patience.first_wait, "interrupted"
        for attempt in range(self.patience.attempts):
            if self.stopped.is_set():
                break
            try:
                self.answers.add(question, self.answers.judge.answer(question))
                return None
            except NoAnswer as none:
                problem = str(none)
                if attempt + 1 < self.patience.attempts:
                    self.stopped.wait(min(max(wait, none.wait), self.patience.longest_wait))
                    wait *= 2
        return problem
