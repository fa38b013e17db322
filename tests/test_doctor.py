"""`seg2any doctor`: each trouble is found, comes with its fix, and decides the exit status."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from seg2any.commands import doctor, doctor_installation, doctor_machine, doctor_model, verbs
from seg2any.commands.finding import BAD, GOOD, POOR, Finding
from tests.infer_command import MODEL

GIB = 2**30


@pytest.mark.parametrize(("version", "state"), [((3, 9), BAD), ((3, 10), GOOD), ((3, 13), GOOD), ((3, 14), POOR)])
def test_versions_of_python(version, state):
    found = doctor_installation.python(version)
    assert found.state == state and ("venv" in found.fix) == (state != GOOD)


def test_packages_are_compared_with_the_requirements():
    import numpy

    newer = f"numpy>{numpy.__version__}"
    required = ["numpy>=1", newer, "no_such_package>=2", 'winonly>=1; sys_platform == "nowhere"']
    found = list(doctor_installation.packages([*required, 'deepspeed_nowhere>=1; extra == "train"']))
    assert [finding.state for finding in found] == [BAD, BAD]
    assert found[0].fix == f'pip install "{newer}"' and numpy.__version__ in found[0].told
    assert "no_such_package is missing" in found[1].told and found[1].fix == 'pip install "no_such_package>=2"'
    (good,) = doctor_installation.packages(["numpy>=1", 'nowhere>=1; extra == "train"'])
    assert good.state == GOOD and "1 required" in good.told and "nowhere" in good.told


@pytest.mark.parametrize(
    ("cuda", "available", "has_gpu", "state", "fix"),
    [
        (None, False, False, GOOD, ""),
        ("13.0", True, True, GOOD, ""),
        (None, False, True, BAD, "--index-url"),
        ("13.0", False, True, BAD, "update the driver"),
    ],
)
def test_builds_of_torch(cuda, available, has_gpu, state, fix, monkeypatch, tmp_path):
    build = SimpleNamespace(__version__="2", version=SimpleNamespace(cuda=cuda))
    build.cuda = SimpleNamespace(is_available=lambda: available)
    monkeypatch.setitem(sys.modules, "torch", build)
    monkeypatch.setattr(doctor_installation, "NVIDIA", tmp_path if has_gpu else tmp_path / "none")
    found = doctor_installation.torch()
    assert found.state == state and fix in found.fix


def test_a_package_that_cannot_be_imported(monkeypatch):
    def broken(name: str):
        raise OSError("libGL.so.1:\n cannot open")

    monkeypatch.setattr("importlib.import_module", broken)
    for found in (doctor_installation.torch(), doctor_installation.pipeline()):
        assert found.state == BAD and "OSError: libGL.so.1: cannot open" in found.told and "pip install" in found.fix


@pytest.mark.parametrize(
    ("gpu", "main", "state", "word"),
    [
        (80, 128, GOOD, ""),
        (32, 128, POOR, "--memory offload"),
        (24, 64, POOR, "--memory nf4"),
        (8, 64, POOR, "--memory group_offload"),
        (0, 64, GOOD, ""),
        (0, 16, POOR, "34 GiB"),
    ],
)
def test_memory(gpu, main, state, word):
    found = doctor_machine.memory(gpu * GIB, main * GIB)
    assert found.state == state and word in found.fix


@pytest.mark.parametrize(
    ("environment", "state", "fix"),
    [
        ({}, GOOD, ""),
        ({"OMP_NUM_THREADS": "1"}, GOOD, ""),
        ({"OMP_NUM_THREADS": "999"}, POOR, "unset OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "many"}, BAD, "unset OMP_NUM_THREADS"),
        ({"OMP_WAIT_POLICY": "active"}, POOR, "unset OMP_WAIT_POLICY"),
    ],
)
def test_threads(environment, state, fix, monkeypatch):
    monkeypatch.setattr(doctor_machine, "n_usable_cores", lambda: 2)
    monkeypatch.setattr(doctor_machine, "n_idle_cores", lambda: 1)
    found = doctor_machine.threads(environment)
    assert found.state == state and found.fix == fix


def test_disks(tmp_path, monkeypatch):
    assert doctor_machine.disk(tmp_path / "not" / "yet").state == GOOD
    assert doctor_machine.disk(tmp_path, 10**9, "downloads").state == POOR
    monkeypatch.setattr("os.access", lambda *_: False)
    assert doctor_machine.disk(tmp_path).state == BAD


def test_models(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor_model, "cached_folder", lambda *names: None)
    assert doctor_model.model(str(MODEL), True).state == GOOD
    assert doctor_model.model("nobody/nothing", False).state == POOR
    missing = doctor_model.model("nobody/nothing", True)
    assert missing.state == BAD and missing.fix.startswith("hf download nobody/nothing")
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    assert "no weights in transformer" in doctor_model.model(str(tmp_path), True).told
    assert doctor_model.model(str(tmp_path / "none"), True).state == BAD


def test_the_embedded_model_is_found_or_named_with_the_way_to_get_it(monkeypatch):
    assert doctor_model.embedded().state == GOOD
    monkeypatch.setattr("seg2any.system.shipped._demo_folder", lambda: None)
    missing = doctor_model.embedded()
    assert missing.state == POOR and missing.fix == 'pip install "seg2any[demo]"'


def test_access_needs_no_network(monkeypatch):
    for token, state in ((None, POOR), ("hf_x", GOOD)):
        monkeypatch.setattr("huggingface_hub.get_token", lambda token=token: token)
        assert doctor_model.access("owner/name").state == state
    assert doctor_model.access(str(MODEL)).state == GOOD


def test_a_hub_that_does_not_answer(monkeypatch):
    def refuse(self, name):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.HfApi.auth_check", refuse)
    (found,) = doctor_model.online("owner/name")
    assert found.state == BAD and "no route to host" in found.told and found.fix
    assert not list(doctor_model.online(str(MODEL)))


@pytest.mark.parametrize(("state", "status"), [(GOOD, 0), (POOR, 0), (BAD, 1)])
def test_problems_decide_the_status_in_text_and_json(state, status, monkeypatch, capsys):
    found = [Finding("python", GOOD, "3"), Finding("disk", state, "full", "rm x" if state != GOOD else "")]
    monkeypatch.setattr(doctor, "findings", lambda given: iter(found))
    assert verbs.main(["doctor"]) == status
    text = capsys.readouterr().out
    assert ("rm x" in text) == (state != GOOD) and f"{status} problem" in text
    assert verbs.main(["doctor", "--json"]) == status
    told = json.loads(capsys.readouterr().out)
    assert told["problems"] == status and told["findings"][1]["state"] == state


def test_this_machine_has_no_problem(capsys):
    """Look at everything, with the model of the repository; the tests run, so the installation works."""
    assert verbs.main(["doctor", "--json", "--pretrained_model_name_or_path", str(MODEL), "--device", "cpu"]) == 0
    found = {one["subject"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert {"python", "packages", "threads", "disk", "model", "access", "torch", "device", "kernels"} <= found.keys()
    assert found["model"]["state"] == GOOD and "attention: " in found["kernels"]["told"] and "memory" in found
    assert all(one["fix"] for one in found.values() if one["state"] != GOOD)
