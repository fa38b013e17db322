"""Exit of a command: its status, and one line for the user with the program's name."""

from __future__ import annotations

import pytest

from seg2any.system.console import exit_status
from seg2any.system.errors import UserError


@pytest.mark.parametrize(
    ("error", "status", "lines"),
    [
        (UserError("a.json: is bad\nb.json: is worse"), 2, ["it: a.json: is bad", "it: b.json: is worse"]),
        (
            OSError(28, "No space left on device", "out/a.png"),
            2,
            ["it: [Errno 28] No space left on device: 'out/a.png'"],
        ),
        (MemoryError("out of memory; turn on less"), 1, ["it: out of memory; turn on less"]),
        (MemoryError(), 1, ["it: out of memory"]),
        (KeyboardInterrupt(), 130, ["it: interrupted; go on"]),
    ],
)
def test_errors_are_reported(capsys: pytest.CaptureFixture, error: BaseException, status: int, lines: list[str]):
    def run() -> None:
        raise error

    assert exit_status("it", run, "go on") == status
    captured = capsys.readouterr()
    assert captured.err.splitlines() == lines and not captured.out


def test_success_prints_nothing(capsys: pytest.CaptureFixture):
    assert exit_status("it", lambda: None) == 0
    assert exit_status("it", lambda: 143) == 143
    assert capsys.readouterr() == ("", "")


def test_mistakes_of_the_program_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_status("it", lambda: 1 // 0)
