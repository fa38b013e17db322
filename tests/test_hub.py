"""Checking without a model, and one line for everything that the hub refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from transformers import AutoTokenizer, CLIPTokenizerFast

from seg2any.bases.flux1.pipeline import Flux1Pipeline
from seg2any.bases.flux1.token_estimate import PIXELS_PER_TOKEN, count_tokens, unknown_parts
from seg2any.bases.flux1.weightless import read_small_files, weightless_pipeline
from seg2any.bases.text import unknown_parts as exactly
from seg2any.commands import doctor_model
from seg2any.commands.finding import BAD, GOOD
from seg2any.generate.model import explained, local_adapter, read_facts
from seg2any.generate.options import FLUX
from seg2any.system.errors import UserError
from seg2any.system.hub import split_revision
from seg2any.system.pretrained import pretrained_processor
from tests.golden_root import REPOSITORY
from tests.infer_command import command, environment, three_layouts

# Counted by the tokenizer of T5, with the end token.
COUNTED = {
    "a cat": 4,
    "wall": 2,
    "curtain,drapery,mantle": 10,
    "Region 1: LEGO lion, with a friendly demeanor!": 17,
    "A front-facing portrait of a lion in the golden savanna at sunset.": 22,
    "A capybara wearing a wizard hat, reading a book by candlelight, oil painting": 23,
    "a photo of a kangaroo wearing an orange hoodie and blue sunglasses standing in front of the eiffel tower "
    'holding a sign that says "very deep learning"': 43,
}


def test_tokens_are_estimated_as_well_as_the_module_says():
    errors = [abs(count_tokens(text) - tokens) / tokens for text, tokens in COUNTED.items()]
    assert max(errors) < 0.35 and sum(errors) / len(errors) < 0.2
    assert count_tokens("") == 1 and count_tokens("word " * 80) == pytest.approx(81, rel=0.1)


def test_the_estimate_and_t5s_tokenizer_know_the_same_characters():
    folder = REPOSITORY.parent / "shared" / "t5_tokenizer"
    if not folder.is_dir():
        pytest.skip(f"{folder} holds the tokenizer of T5")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    latin = (
        "gr\xf6\xdfer caf\xe9 \xf1and\xfa",
        "\uff21\uff22",
        "e\u0301t\xe9",
        "na\xefve \u2014 \u201cb\u201d",
        "{left} to ~right",
    )
    others = ("a \u7ea2 cat \U0001f534\U0001f535", "\u4e00\u4e2a\u7ea2\u8272", "\u043f\u0440\u0438\u0432\u0435\u0442")
    for text in (*latin, *others):
        assert unknown_parts(text) == exactly(tokenizer, text)


def test_without_a_model_sizes_are_those_of_flux():
    facts = read_facts(None)
    assert facts.pixels_per_token == PIXELS_PER_TOKEN == 16 and not facts.are_counted


FILES = {"step-5/default/pytorch_lora_weights.safetensors": b"weights", "step-5/adapter.json": b"{}", "notes.txt": b"?"}
COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """A hub with a gated repository, one of adapters, and one that always fails; others do not exist."""

    def do_HEAD(self) -> None:
        path = self.path.split("?")[0]
        if "/black-forest-labs/FLUX.1-dev/" in path:
            self.send(401, {"X-Error-Code": "GatedRepo"})
        elif "some/broken" in path:
            self.send(503, {})
        elif path.startswith("/api/models/some/adapter"):
            oid = "1" * 40
            tree = [{"type": "file", "path": name, "size": len(data), "oid": oid} for name, data in FILES.items()]
            info = {"id": "some/adapter", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
            if "v2" in path:
                self.send(404, {"X-Error-Code": "RevisionNotFound"})
            else:
                self.send(200, {}, json.dumps(tree if "/tree/" in path else info).encode())
        elif path.startswith("/some/adapter/resolve/") and (name := "/".join(path.split("/")[5:])) in FILES:
            self.send(200, {"X-Repo-Commit": COMMIT, "ETag": f'"{len(FILES[name])}"'}, FILES[name])
        else:
            self.send(404, {"X-Error-Code": "RepoNotFound"})

    do_GET = do_HEAD

    def send(self, status: int, headers: dict[str, str], data: bytes = b"") -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def online(server: ThreadingHTTPServer, cache: Path) -> dict[str, str]:
    address = f"http://127.0.0.1:{server.server_port}"
    removed = {"HF_TOKEN": "", "HTTP_PROXY": "", "http_proxy": "", "NO_PROXY": "*"}
    return {**environment(), **removed, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, "HF_HOME": str(cache)}


ASK = """
import json, sys
from pathlib import Path
from seg2any.system import hub
from seg2any.system.console import quiet_libraries
from seg2any.system.errors import UserError
quiet_libraries()
said = {}
for name in ("black-forest-labs/FLUX.1-dev", "black-forest-lab/FLUX.1-dev", "some/broken"):
    try:
        hub.check_access(name, "model_index.json")
    except OSError as error:
        said[name] = hub.problem(name, error)
for name in ("some/adapter/step-5", "some/adapter", "some/adapter/step-6", "some/typo", "some/adapter@v1/step-5",
             "some/adapter@v2/step-5"):
    try:
        found = hub.fetch_folder(Path(name), "--flag", "default/pytorch_lora_weights.safetensors",
                                 ("default/*.safetensors", "adapter.json"))
        said[name] = sorted(str(file.relative_to(found)) for file in found.rglob("*") if file.is_file())
    except UserError as error:
        said[name] = str(error)
print(json.dumps(said))
"""


def test_the_hub_is_asked_once_and_refuses_in_one_line(server: ThreadingHTTPServer, tmp_path: Path):
    asked = subprocess.run(
        [sys.executable, "-c", ASK], cwd=REPOSITORY, env=online(server, tmp_path), capture_output=True, text=True
    )
    assert asked.returncode == 0 and "Retr" not in asked.stderr + asked.stdout, asked.stderr
    said = json.loads(asked.stdout)
    assert said["black-forest-labs/FLUX.1-dev"].startswith(
        "is gated; accept its licence at https://huggingface.co/black"
    )
    assert "none on the hub, or it is private" in said["black-forest-lab/FLUX.1-dev"]
    assert "the hub did not give it" in said["some/broken"] and "503" in said["some/broken"]
    heads = [line for line in server.asked if "model_index.json" in line]
    assert len(heads) == 3

    assert said["some/adapter/step-5"] == ["adapter.json", "default/pytorch_lora_weights.safetensors"]
    for name in ("some/adapter", "some/adapter/step-6"):
        assert said[name].startswith(f"--flag {name}: has no default/") and said[name].endswith("some/adapter/step-5")
    assert said["some/typo"].startswith("--flag some/typo: no such folder, and none on the hub")
    assert not any("notes.txt" in line for line in server.asked), "only adapters are downloaded"

    assert said["some/adapter@v1/step-5"] == said["some/adapter/step-5"]
    assert any(line.endswith("/api/models/some/adapter/revision/v1") for line in server.asked)
    assert said["some/adapter@v2/step-5"].startswith("--flag some/adapter@v2/step-5: is on the hub, but without the")


MODEL = REPOSITORY / "examples" / "shapes" / "model"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the small model and its first tokenizer into a hub's cache, as the revision v1 of two repositories."""
    for repository, folder in (("name", MODEL), ("judge", MODEL / "tokenizer")):
        for file in (file for file in folder.rglob("*") if file.is_file()):
            link = tmp_path / f"models--owner--{repository}" / "snapshots" / COMMIT / file.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
        (tmp_path / f"models--owner--{repository}" / "refs").mkdir()
        (tmp_path / f"models--owner--{repository}" / "refs" / "v1").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("revision", ["v1", COMMIT])
def test_a_revision_is_asked_for_and_no_other_is_taken(revision: str, cache: Path, monkeypatch: pytest.MonkeyPatch):
    name, asked = f"owner/name@{revision}", []

    def download(repository: str, **options: object) -> str:
        asked.append((repository, options["revision"]))
        return str(MODEL)

    monkeypatch.setattr(Flux1Pipeline, "download", download)  # the library's own lists the files at the hub
    with explained(name):
        pixels, tokenizer = read_small_files(name)
        assert weightless_pipeline(name).tokenizer_2.get_vocab() == tokenizer.get_vocab()
    assert pixels == 16 and {*asked} == {("owner/name", revision)}
    judge = pretrained_processor(CLIPTokenizerFast, f"owner/judge@{revision}", "judge", "owner/judge")
    assert judge.get_vocab() == CLIPTokenizerFast.from_pretrained(MODEL / "tokenizer").get_vocab()
    assert doctor_model.model(name, is_asked_for=True).state == GOOD
    for other in ("owner/name", "owner/name@v2"):
        with pytest.raises(UserError, match="HF_HUB_OFFLINE"), explained(other):
            read_small_files(other)
        assert doctor_model.model(other, is_asked_for=True).state == BAD


@pytest.mark.parametrize(
    "name", ["owner/name@", "owner/name@a b", "owner/name@-x", "owner/name@a/b/c", "owner/name@\n"]
)
def test_what_can_be_no_revision_is_refused(name: str):
    with pytest.raises(UserError, match="names no revision; write a commit, tag or branch behind @") as error:
        split_revision(name)
    assert "\n" not in str(error.value)


def test_a_folder_with_an_at_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/mine@5").mkdir(parents=True)
    for name in ("runs/mine@5", "/no/where@5/x", "owner/name", "a@b", "./runs/x@5"):
        assert split_revision(name) == (name, {})


@pytest.mark.slow
def test_a_gated_model_is_one_line(server: ThreadingHTTPServer, tmp_path: Path):
    flags = {"seg_mask_path": three_layouts(tmp_path), "output_path": tmp_path / "out"}
    flags["pretrained_model_name_or_path"] = FLUX
    made = subprocess.run(command(**flags), env=online(server, tmp_path), capture_output=True, text=True)
    assert made.returncode == 2 and len(made.stderr.splitlines()) == 1 and "is gated; accept" in made.stderr, (
        made.stderr
    )


def test_a_local_path_is_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for path in ("runs/typo", "no_adapter", "../some/typo", "/some/typo", "./typo"):
        assert local_adapter(Path(path)) == Path(path)
    assert local_adapter(None) is None
    with pytest.raises(UserError, match="--lora_ckpt_path ckpt/typo: no such folder, and HF_HUB_OFFLINE"):
        local_adapter(Path("ckpt/typo"))


@pytest.mark.slow
def test_a_check_needs_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    import infer

    out = tmp_path / "out"
    flags = ["--seg_mask_path", three_layouts(tmp_path), "--output_path", out, "--check", "--strict"]
    monkeypatch.setattr(sys, "argv", ["infer.py", *map(str, flags)])
    assert infer.main() == 0
    printed = capsys.readouterr()
    assert "a: 64x64, seed 3, caption ~" in printed.out and "no model is named" in printed.out and printed.err == ""
    (first, *_) = json.loads((out / "preflight.json").read_text())["layouts"]
    assert first["caption"]["counted"] is False and first["image_tokens"] == 16
