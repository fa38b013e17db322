"""Examine the model for `doctor`: its folder or its place in the hub's cache, and the access to gated weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from seg2any.bases.flux1.recognise import PARTS, is_local, refuse_other_models
from seg2any.commands.finding import BAD, GOOD, POOR, Finding
from seg2any.generate.options import Options
from seg2any.system.errors import UserError, shown
from seg2any.system.headers import weights_files
from seg2any.system.hub import cached_folder, is_offline, split_revision
from seg2any.system.shipped import demo_folder

STEMS = ("diffusion_pytorch_model", "model")  # of weights, as diffusers and transformers call them


def model(name: str, is_asked_for: bool) -> Finding:
    """Look for the weights of a folder or hub id, without the network and without loading them.

    is_asked_for  a model that the command line names must be there; the default one need not
    """
    missing = BAD if is_asked_for else POOR
    if Path(name).is_file():
        return Finding("model", GOOD, f"{name}: one file; `generate --check` looks into it")
    try:
        folder = Path(name) if is_local(name) else cached_folder(name, "model_index.json")
        if folder is not None:
            refuse_other_models(str(folder))
        if folder is None:
            repository, revision = split_revision(name)
            chosen = "".join(f" --revision {one}" for one in revision.values())
            download = f"hf download {repository}{chosen} (34 GB)"
            fix = f"{download}; without it, `seg2any demo` makes images with the embedded model"
            return Finding("model", missing, f"{name} is not on this machine", fix)
        lacking = [part for part in PARTS if not weights_files(folder / part, STEMS)]
    except UserError as error:
        return Finding("model", BAD, str(error), f"hf download {Options().model}")
    if lacking:
        where = f"into {name}" if folder == Path(name) else "again; it goes on where it stopped"
        return Finding("model", missing, f"{name}: no weights in {', '.join(lacking)}", f"download them {where}")
    return Finding("model", GOOD, f"{name}: weights of {', '.join(PARTS)}")


def embedded() -> Finding:
    """Look for the small model, which `demo` uses."""
    try:
        return Finding("demo", GOOD, f"the embedded model is in {demo_folder()}")
    except UserError as error:
        told, _, fix = str(error).partition("; ")
        return Finding("demo", POOR, told, fix.removeprefix("run ").strip("`"))


def access(name: str) -> Finding:
    """Tell whether a token for gated weights is there, without the network."""
    from huggingface_hub import get_token

    if Path(name).exists():
        return Finding("access", GOOD, f"{name} is a folder, no token is needed")
    if get_token():
        return Finding("access", GOOD, "a token of the hub is there; --online asks the hub")
    fix = f"accept the licence at https://huggingface.co/{split_revision(name)[0]}, then `hf auth login`"
    return Finding("access", POOR, "no token of the hub, and FLUX.1-dev is gated", fix)


def online(name: str) -> Iterator[Finding]:
    """Ask the hub whether this machine may download a model; nothing for a folder."""
    if Path(name).exists():
        return
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        repository, _ = split_revision(name)
        HfApi().auth_check(repository)
    except GatedRepoError:
        fix = f"accept the licence at https://huggingface.co/{repository}, then `hf auth login`"
        yield Finding("online", BAD, f"{name} is gated for this token", fix)
    except RepositoryNotFoundError:
        yield Finding("online", BAD, f"{name} is not on the hub, or private", "check the id, then `hf auth login`")
    except Exception as error:  # every kind of network trouble, also of libraries below
        offline = "unset HF_HUB_OFFLINE" if is_offline() else ""
        told = f"the hub does not answer ({shown(' '.join(str(error).split()) or type(error).__name__, 100)})"
        yield Finding("online", BAD, told, offline or "check the network, or set HF_ENDPOINT to a mirror")
    else:
        yield Finding("online", GOOD, f"{name} may be downloaded")


def cache_folder() -> Path:
    """Return the folder that downloads go to."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)
