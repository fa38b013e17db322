"""Pages for readers: commands, examples, files and links that they name are accepted or exist."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from seg2any.commands import verbs
from seg2any.data.bucket_map import SCHEMA
from seg2any.data.sacap.options import parse_options as parse_sacap_options
from seg2any.evaluation.ablation.options import parse_options as parse_ablation_options
from seg2any.evaluation.shapes.options import parse_options as parse_bench_options
from seg2any.layout import Layout
from seg2any.system.arguments import Parser
from seg2any.training import config
from tests.golden_root import REPOSITORY
from tests.pages import pages

TEXTS = {path: path.read_text(encoding="utf-8") for path in pages()}
README = TEXTS[REPOSITORY / "README.md"]
# Named as examples of what a user has or gets, and the published code's address.
NOT_OURS = {"result/", "default/", "cond/", "site/", "benchmarks/results/step_cpu.md", "shared/golden"}
NOT_OURS |= {"shared/t5_tokenizer", "0xLDF/Seg2Any", "checkpoint-N/default", "checkpoint-N/cond", "owner/name"}
LAUNCHERS = {"help", "multi_gpu", "nproc_per_node", "num_processes"}  # of every program; of other programs


def blocks(language: str, text: str | None = None) -> list[str]:
    """List the contents of fenced blocks of a language, in one text or in all pages."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", "\n".join(TEXTS.values()) if text is None else text, re.S | re.M)
    return [content for name, content in fenced if name == language]


def commands() -> list[list[str]]:
    """Every command line of the pages, in blocks and in running text, as words."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    for text in TEXTS.values():
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
        lines += re.findall(r"`((?:python|make|torchrun|bash|seg2any) [^`]*)`", prose.replace("\n", " "))
    return [shlex.split(line, comments=True) for line in lines if line.strip() and "..." not in line]


class Accepted(BaseException):
    """A command line was parsed; no command is meant to catch this."""


def arguments_of(word: str) -> list[list[str]]:
    """List the arguments of every command that runs a script or module."""
    return [words[words.index(word) + 1 :] for words in commands() if word in words]


def test_make_targets_exist():
    targets = set(re.findall(r"(?m)^([a-z-]+):", (REPOSITORY / "Makefile").read_text()))
    named = {words[1] for words in commands() if words[0] == "make"}
    assert named >= {"demo", "test", "bench"} and named <= targets


def test_commands_of_seg2any_are_accepted(monkeypatch):
    """Each verb parses its command line, and stops there; keys of configs are those of the next tests."""
    parse = Parser.parse_args

    def stop(parser: Parser, *given: object) -> None:
        raise Accepted(parse(parser, *given))

    monkeypatch.setattr(Parser, "parse_args", stop)
    given = [words[1:] for words in commands() if words[0] == "seg2any" and {*words}.isdisjoint({"VERB", "--help"})]
    assert len(given) > 20 and {words[0] for words in given} > {"demo", "check", "generate", "replay", "evaluate"}
    for words in given:
        if words[0] not in ("train", "prepare") and len(words) > 1 + (words[0] == "evaluate"):
            with pytest.raises(Accepted):
                verbs.main(words)


def test_flags_in_running_text_exist():
    """Each is a flag of generation, a key of configs, or an argument of some command here."""
    rooms = (REPOSITORY / room for room in ("seg2any", "benchmarks", "eval"))
    sources = [path for room in rooms for path in room.rglob("*.py")]
    known = {name for path in sources for name in re.findall(r"[\"']--(\w+)", path.read_text(encoding="utf-8"))}
    known |= set(re.findall(r"--(\w+)", TEXTS[REPOSITORY / "docs" / "inference.md"])) | {*config.Config().to_dict()}
    named = {name for text in TEXTS.values() for name in re.findall(r"`--(\w+)(?![\w.-])", text)}
    run = [word for words in commands() if words[0] == "python" for word in words]
    named |= {name for word in run for name in re.findall(r"^--(\w+)(?:=|$)", word)}
    assert len(named) > 20 and sorted(named - known - LAUNCHERS) == []


def test_commands_of_training_are_accepted():
    given = [words[2:] for words in commands() if words[:2] in (["seg2any", "train"], ["python", "train.py"])]
    given = [words for words in given if words and words != ["--help"]]
    assert len(given) > 5
    for arguments in given:
        files = [str(REPOSITORY / word) if word.startswith("config/") else word for word in arguments]
        config.load(files)


def test_commands_of_counting_are_accepted():
    given = [words[2:] for words in commands() if words[:2] == ["seg2any", "prepare"] and words[2:]]
    given += arguments_of("prepare_dataset_bucket_map.py")
    assert len(given) > 3
    for first, *rest in given:
        options = " ".join(rest)
        config.load([str(REPOSITORY / first), *re.sub(r"--(shard|workers) \S+", "", options).split()])


def test_bash_understands_every_block():
    asked = subprocess.run(["bash", "-n"], input="\n".join(blocks("bash")), capture_output=True, text=True)
    assert (asked.returncode, asked.stderr) == (0, "")


def test_shell_scripts_are_given_names_that_they_know():
    for script in ("train.sh", "eval.sh"):
        known = set(re.findall(r"(?m)^(\w+)\(\) \{ ?", (REPOSITORY / script).read_text()))
        given = {words[0] for words in arguments_of(script)}
        assert given and given <= known


def test_arguments_of_the_bench_are_accepted():
    given = [word.removeprefix("ARGS=") for words in commands() for word in words if word.startswith("ARGS=")]
    assert given and all(parse_bench_options(shlex.split(arguments)) for arguments in given)


def test_the_page_of_evaluation_counts_the_rows_of_the_ablation():
    (told,) = {int(count) for count in re.findall(r"# (\d+) rows x", "\n".join(TEXTS.values()))}
    assert len(parse_ablation_options([]).rows) == told


def test_commands_of_the_sacap_tools_are_accepted():
    given = [words for words in arguments_of("seg2any.data.sacap") if len(words) > 1]
    assert {parse_sacap_options(words).command for words in given} == {"plan", "extract", "verify"}


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


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as a forge makes them."""
    headings = re.findall(r"(?m)^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page: Path):
    for link in set(re.findall(r"\]\(([^)]+)\)", TEXTS[page])):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(TEXTS[target]), link


def test_pictures_have_words_for_those_who_do_not_see_them():
    named = [word for text in TEXTS.values() for word in re.findall(r"!\[([^\]]*)\]\(", text)]
    assert len(named) > 2 and all(len(words) > 10 for words in named)


def test_the_page_of_data_draws_the_trees_that_the_configs_name():
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


def test_the_page_of_data_lists_the_columns_of_the_bucket_map():
    text = TEXTS[REPOSITORY / "docs" / "data.md"]
    rows = re.findall(r"(?m)^\| (`.*?) \|", text[text.index("**Bucket map**") :])
    assert re.findall(r"`(\w+)`", " ".join(rows)) == SCHEMA.names


def test_the_first_picture_is_the_example_in_the_repository():
    folder = REPOSITORY / "examples" / "drawing"
    (shown,) = (block for block in blocks("json", README))
    assert json.loads(shown) == json.loads((folder / "drawing.json").read_text())
    layout = Layout.read(folder / "drawing.json")
    assert layout.size == (256, 256) and len(layout.masks) == 4
    assert layout.captions == tuple(region["text"] for region in json.loads(shown)["segments_info"])


@pytest.mark.parametrize("example", blocks("python"))
def test_python_examples_name_what_exists(example: str):
    for node in ast.walk(ast.parse(example)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
    if "Seg2AnyPipeline" not in example:
        exec(compile(example, "example", "exec"), {})
        return
    from seg2any import Seg2AnyPipeline

    named = re.findall(r"\b(?:pipe|Seg2AnyPipeline)\.(\w+)", example)
    assert named and all(hasattr(Seg2AnyPipeline, name) for name in named)


def named_paths() -> set[str]:
    """Paths of this repository in running text and in examples: with a folder or a suffix of ours, no placeholder."""
    text = "\n".join(TEXTS.values())
    words = re.findall(r"`([\w./-]+)`", text) + re.findall(r'"(examples/[\w./-]+)"', text)
    words += [word for line in commands() for word in line if word.startswith(("examples/", "config/"))]
    ours = r"(examples|seg2any|eval|tests|config|docs|benchmarks)/.*|(infer|train)\.(py|sh)|LICENSE|NOTICE|Makefile"
    return {word for word in words if re.fullmatch(ours, word) and word not in NOT_OURS}


@pytest.mark.parametrize("path", sorted(named_paths()))
def test_named_paths_exist(path: str):
    assert (REPOSITORY / path).exists()


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 250


@pytest.mark.parametrize("card", ["model", "lora", "lora_isolated", "lora_coloring", "xsam"])
def test_model_cards_tell_a_hub_their_licence(card: str):
    text = (REPOSITORY / "examples" / "shapes" / card / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["license"] == "apache-2.0" and "seg2any" in header["tags"]
