"""The README names commands, files and rooms that exist, and every room of the package."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from seg2any.attention.settings import NAMES
from seg2any.data.sacap.options import parse_options as parse_sacap_options
from seg2any.evaluation.ablation.options import parse_options as parse_ablation_options
from seg2any.evaluation.shapes.options import parse_options as parse_bench_options
from seg2any.generate.options import Options
from seg2any.training import config
from tests.golden_root import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
# Named as examples of what a user has or gets.
NOT_OURS = {
    "result/",
    "default/",
    "cond/",
    "default/pytorch_lora_weights.safetensors",
    "cond/pytorch_lora_weights.safetensors",
}


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
    return [content for name, content in fenced if name == language]


def commands() -> list[list[str]]:
    """Every command line of the README, in blocks and in running text, as words."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:python|make) [^`]*)`", README.replace("\n", " "))
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def test_make_targets_exist():
    targets = set(re.findall(r"(?m)^([a-z-]+):", (REPOSITORY / "Makefile").read_text()))
    named = {words[1] for words in commands() if words[0] == "make"}
    assert named >= {"demo", "test", "bench"} and named <= targets


def test_flags_of_infer_are_the_flags_that_exist():
    table = README[README.index("\n## infer.py") : README.index("\n## Python")]
    fields = {field.name for field in dataclasses.fields(Options)} - {"settings"} | {*NAMES}
    assert set(re.findall(r"`--(\w+)`", table)) == fields
    used = {word[2:] for words in commands() if "infer.py" in words for word in words if word.startswith("--")}
    assert used and used <= fields
    quoted = set(re.findall(r"`--(\w+) ", README))
    assert quoted <= fields


def test_commands_of_training_are_accepted():
    trainings = [words[words.index("train.py") + 1 :] for words in commands() if "train.py" in words]
    assert trainings
    for arguments in trainings:
        assert arguments[0].startswith("config/")
        config.load([str(REPOSITORY / arguments[0]), *arguments[1:]])


def test_arguments_of_the_bench_are_accepted():
    given = [word.removeprefix("ARGS=") for words in commands() for word in words if word.startswith("ARGS=")]
    assert given
    for arguments in given:
        parse_bench_options(shlex.split(arguments))


def test_commands_of_the_ablation_are_accepted():
    given = [
        words[words.index("seg2any.evaluation.ablation") + 1 :]
        for words in commands()
        if "seg2any.evaluation.ablation" in words
    ]
    assert len(given) > 2 and all(parse_ablation_options(words).rows for words in given)
    (told,) = {int(count) for count in re.findall(r"# (\d+) rows x", README)}
    assert len(parse_ablation_options([]).rows) == told


def test_modules_and_scripts_that_commands_run_exist():
    modules = {words[words.index("-m") + 1] for words in commands() if words[0] == "python" and words[1:2] == ["-m"]}
    assert len(modules) > 9 and all(importlib.util.find_spec(module) for module in modules)
    scripts = {words[words.index("bash") + 1] for words in commands() if "bash" in words}
    assert scripts and all((REPOSITORY / script).is_file() for script in scripts)


@pytest.mark.parametrize("script", ["train.sh", "eval.sh"])
def test_scripts_explain_themselves_and_refuse_what_they_do_not_know(script: str):
    asked, empty, wrong = (
        subprocess.run(["bash", script, *words], cwd=REPOSITORY, capture_output=True, text=True)
        for words in (["--help"], [], ["nothing"])
    )
    assert asked.returncode == 0 and f"bash {script} shapes" in asked.stdout and not asked.stderr
    assert (empty.returncode, empty.stderr) == (2, asked.stdout)
    assert wrong.returncode == 2 and wrong.stderr.startswith(f"{script}: ") and wrong.stderr.count("\n") == 1


def test_links_lead_to_files_and_headings_that_exist():
    headings = re.findall(r"(?m)^#+ (.*)$", README)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = set(re.findall(r"\]\(([^)]+)\)", README))
    local = {link for link in links if not link.startswith("http")}
    assert {link for link in local if link.startswith("#")} <= {f"#{anchor}" for anchor in anchors}
    assert all((REPOSITORY / link).is_file() for link in local if not link.startswith("#"))


def test_commands_of_the_sacap_tools_are_accepted():
    given = [words[words.index("seg2any.data.sacap") + 1 :] for words in commands() if "seg2any.data.sacap" in words]
    assert {parse_sacap_options(words).command for words in given} == {"plan", "extract", "verify"}


def test_the_readme_draws_the_trees_that_the_configs_name():
    drawn, parents = set(), []
    (block,) = (block for block in blocks("text") if block.startswith("data/"))
    for line in block.splitlines():
        parents = [*parents[: (len(line) - len(line.lstrip())) // 2], line.split()[0]]
        drawn.add("".join(parents).rstrip("/"))
    values = [value for path in (REPOSITORY / "config").glob("*.yaml") for value in path.read_text().split()]
    named = {value for value in values if value.startswith("data/")} - {
        value for value in values if value.endswith("/cache")
    }
    assert named and named <= drawn
    parts = {parent.as_posix() for path in named for parent in Path(path).parents} - {"."}
    assert drawn == named | parts | {"data/SACap-1M/cache"}


def test_python_examples_name_what_exists():
    (example,) = blocks("python")
    for node in ast.walk(ast.parse(example)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
    from seg2any import Seg2AnyPipeline

    assert all(
        hasattr(Seg2AnyPipeline, name) for name in re.findall(r"pipe\.(\w+)|Pipeline\.(\w+)", example)[0] if name
    )


def named_paths() -> set[str]:
    """Paths of this repository in running text and in examples: with a folder or a suffix of ours, no placeholder."""
    words = re.findall(r"`([\w./-]+)`", README) + re.findall(r'"(examples/[\w./-]+)"', README)
    words += [word for line in commands() for word in line if word.startswith(("examples/", "config/"))]
    ours = r"(examples|seg2any|eval|tests|config)(/.*)?|.*/.*|\w+\.py|LICENSE|NOTICE|Makefile"
    named = {word for word in words if re.fullmatch(ours, word) and word not in NOT_OURS}
    return {word for word in named if not word.startswith("data/")}  # what a user has downloaded


@pytest.mark.parametrize("path", sorted(named_paths()))
def test_named_paths_exist(path: str):
    assert (REPOSITORY / path).exists()


def tree() -> dict[str, str]:
    """Path -> description of every line of the house."""
    (house,) = blocks("")
    found, parents = {}, []
    for line in house.rstrip().splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names, _, description = line.strip().partition("  ")
        for name in names.split():
            path = "".join([*parents[:depth], name])
            assert path not in found, f"{path} is listed twice"
            found[path] = description.strip()
        parents = [*parents[:depth], name]
    return found


def test_the_house_names_every_room_and_nothing_that_does_not_exist():
    house = tree()
    assert all((REPOSITORY / path).exists() for path in house), [p for p in house if not (REPOSITORY / p).exists()]
    rooms = {path.parent.name for path in (REPOSITORY / "seg2any").glob("*/*.py")}
    assert {path for path in house if path.startswith("seg2any/")} == {f"seg2any/{room}/" for room in rooms} | {
        "seg2any/"
    }
