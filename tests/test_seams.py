"""Only the rooms of bases know their networks: other rooms see `Base` and call its network by `velocity`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.golden_root import REPOSITORY

HOMES = ("seg2any/bases/flux1/", "seg2any/bases/sd3/")
NAMES = re.compile(
    r"\bT5|\bCLIP|pooled_prompt_embeds|text_encoder_2|tokenizer_2"
    r"|\bFlux(Pipeline|Transformer2DModel)\b|\b(Flux|Regional)\w*Block\b"
)
CALLS = re.compile(r"(?<!\w)hidden_states=|joint_attention_kwargs")

# CLIP is another network there than FLUX.1's text encoder: a judge of images, or the encoder of SAM 3 and gen2seg.
OTHER_CLIP = (
    "seg2any/evaluation/",
    "seg2any/annotate/",
    "seg2any/commands/annotate.py",
    "seg2any/segment/sam3.py",
    "seg2any/segment/coloring/published.py",
    "seg2any/system/clip_images.py",
)
# Benchmarks measure FLUX.1 and may name it; these two also call a transformer without `velocity`.
OTHER_CALLS = {
    "benchmarks/published_scheme.py": "replaces parts of the blocks by the published code's scheme",
    "benchmarks/step_schemes.py": "times stock FLUX for comparison",
}


def found(pattern: re.Pattern, root: Path, *packages: str) -> list[str]:
    """List `file:line name` for every match of the pattern outside the rooms of bases."""
    paths = sorted(path for package in packages for path in (root / package).rglob("*.py"))
    lines = []
    for path, file in ((path, path.relative_to(root).as_posix()) for path in paths):
        if file.startswith(HOMES):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            names = {match.group() for match in pattern.finditer(line)}
            if file.startswith(OTHER_CLIP):
                names -= {"CLIP"}
            lines += [f"{file}:{number} {name}" for name in sorted(names)]
    return lines


def test_other_rooms_do_not_name_the_parts_of_flux1():
    assert found(NAMES, REPOSITORY, "seg2any") == []


def test_other_rooms_call_no_transformer_but_by_velocity():
    calls = found(CALLS, REPOSITORY, "seg2any", "benchmarks")
    assert [call for call in calls if call.split(":")[0] not in OTHER_CALLS] == []


def test_every_exception_is_one():
    calls = {call.split(":")[0] for call in found(CALLS, REPOSITORY, "benchmarks")}
    assert calls == set(OTHER_CALLS)


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("seg2any/data/count.py", "# tokens of T5", ["seg2any/data/count.py:1 T5"]),
        ("seg2any/training/build.py", "\npipe.text_encoder_2", ["seg2any/training/build.py:2 text_encoder_2"]),
        (
            "seg2any/generate/memory.py",
            "FluxTransformer2DModel",
            ["seg2any/generate/memory.py:1 FluxTransformer2DModel"],
        ),
        ("seg2any/segment/probe.py", "RegionalDoubleBlock()", ["seg2any/segment/probe.py:1 RegionalDoubleBlock"]),
        ("seg2any/evaluation/judges/clip.py", "CLIPModel", []),
        ("seg2any/bases/flux1/text.py", "T5", []),
        ("seg2any/generate/pipeline.py", "FluxPipelineOutput", []),
    ],
)
def test_a_name_is_found(tmp_path: Path, file: str, source: str, expected: list[str]):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(source)
    assert found(NAMES, tmp_path, "seg2any") == expected


def test_a_call_is_found(tmp_path: Path):
    (tmp_path / "seg2any").mkdir()
    (tmp_path / "seg2any" / "probe.py").write_text("model(hidden_states=x)\nmodel(output_hidden_states=True)")
    assert found(CALLS, tmp_path, "seg2any") == ["seg2any/probe.py:1 hidden_states="]
