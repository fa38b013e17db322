"""Ctrl-C at any moment of a command: status 130, one line, no traceback."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden_root import REPOSITORY
from tests.infer_command import command, environment, layout

COMMAND = """
import atexit, os, signal, sys, threading, time, weakref
from seg2any.system.console import exit_status
from seg2any.system.interrupts import run_command

def ctrl_c(*ignored):
    os.kill(os.getpid(), signal.SIGINT)

class Noisy:
    def __del__(self):
        ctrl_c()
        time.sleep(0)

class Slow:
    def __del__(self, wait=time.sleep):
        wait(1)

def run():
{body}

run_command(lambda: exit_status("it", run, "go on"))
"""
SOON = "from seg2any.system import interrupts; interrupts.PATIENCE = 0.5\n"
WAIT = "threading.Event().wait(60); print('not interrupted')"
BODIES = {
    "plain code": f"ctrl_c(); {WAIT}",
    "a progress bar's constructor": "from tqdm import tqdm; tqdm.status_printer = ctrl_c; tqdm(total=3)",
    "a destructor": f"Noisy(); {WAIT}",
    "a callback": f"x = type('X', (), dict())(); r = weakref.ref(x, ctrl_c); del x; {WAIT}",
    "code that makes an error of it": "\n".join(
        [
            "try:",
            "    ctrl_c(); time.sleep(0)",
            "except BaseException as e:",
            "    raise ImportError('no numpy') from e",
        ]
    ),
    "code that swallows it": "try:\n    ctrl_c(); time.sleep(0)\nexcept BaseException:\n    pass",
    "the cleanup after another": f"try:\n    ctrl_c(); {WAIT}\nfinally:\n    ctrl_c(); {WAIT}",
    "a thread that fails as the command ends": "\n".join(
        [
            "stopped = threading.Event()",
            "threading.Thread(target=lambda: (stopped.wait(), 1 / 0)).start()",
            f"try:\n    ctrl_c(); {WAIT}\nfinally:\n    stopped.set()",
        ]
    ),
    "code that loses it and goes on": (
        f"{SOON}try:\n    ctrl_c(); time.sleep(0)\nexcept BaseException:\n    pass\n{WAIT}"
    ),
    "a shutdown that hangs": f"{SOON}atexit.register(threading.Event().wait, 60); ctrl_c(); {WAIT}",
    "a teardown that outlasts the patience": f"{SOON}sys.modules['slow'] = Slow(); ctrl_c(); {WAIT}",
    "the interpreter's shutdown": "atexit.register(time.sleep, 60); atexit.register(ctrl_c)",
}


def ended(body: str, **options: object) -> tuple[int, str, str]:
    """Run a command whose `run` is `body`; return its exit status, stdout and stderr."""
    program = COMMAND.format(body="\n".join(f"    {line}" for line in body.splitlines()))
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=100, **options
    )
    return done.returncode, done.stdout, done.stderr


def hear_ctrl_c() -> None:
    """Restore the default action of SIGINT in a new process.

    Background jobs of a shell ignore Ctrl-C, and their children inherit this.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("where", BODIES)
def test_an_interrupt_is_one_line_wherever_it_arrives(where: str):
    status, output, errors = ended(BODIES[where], preexec_fn=hear_ctrl_c)
    assert (status, output, errors.count("\n")) == (130, "", 1), errors
    assert "interrupted" in errors


def test_other_errors_of_destructors_and_threads_are_shown():
    body = (
        "Noisy.__del__ = lambda self: 1 / 0; Noisy(); t = threading.Thread(target=lambda: {}['x']); t.start(); t.join()"
    )
    status, _, errors = ended(body)
    assert status == 0 and "ZeroDivisionError" in errors and "KeyError" in errors


def test_a_background_job_ignores_the_interrupt():
    status, output, _ = ended(
        "ctrl_c(); print('went on')", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    )
    assert (status, output) == (0, "went on\n")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_signals_of_batch_systems_are_one_line_and_their_status(name: str):
    number = signal.Signals[name]
    body = f"os.kill(os.getpid(), {int(number)}); {WAIT}"
    status, output, errors = ended(body, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL))
    assert (status, output, errors.count("\n")) == (128 + number, "", 1), errors
    assert "interrupted" in errors and name in errors


def test_a_closed_terminal_does_not_end_what_nohup_started():
    body = "os.kill(os.getpid(), signal.SIGHUP); print('went on')"
    status, output, _ = ended(body, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert (status, output) == (0, "went on\n")


@pytest.mark.long
@pytest.mark.parametrize(("event", "every"), [("import", 200), ("call", 200_003)])
def test_infer_can_be_interrupted_at_any_moment(tmp_path: Path, event: str, every: int):
    layout("a").write(tmp_path / "masks" / "a.json")
    words = command(seg_mask_path=tmp_path / "masks", output_path=tmp_path / "out")[1:]
    run = subprocess.run(
        [sys.executable, "-m", "tests.interrupted", event, str(every), *words],
        **{"cwd": REPOSITORY, "capture_output": True, "text": True, "timeout": 500, "env": environment()},
        preexec_fn=hear_ctrl_c,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert len(found) > 10
    for place, status, errors in found:
        assert status == 130 and errors.count("infer.py: interrupted") == 1, (place, errors)
        assert "Traceback" not in errors and "Exception ignored" not in errors, (place, errors)
