"""Read the small files of a model and its adapters, before any weight is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from seg2any.adapters.card import CARD_FILE, AdapterCard, read_card
from seg2any.adapters.lora_file import WEIGHTS_FILE, weights_file
from seg2any.adapters.routing import COND, DEFAULT
from seg2any.bases.flux1 import token_estimate, weightless
from seg2any.bases.flux1.pipeline import Flux1Pipeline
from seg2any.bases.flux1.saved import ADAPTERS, folded_adapters, saved_adapters
from seg2any.bases.flux1.source import find_source
from seg2any.bases.text import unknown_parts
from seg2any.generate.preflight import ModelFacts
from seg2any.generate.world import read_world
from seg2any.system import hub
from seg2any.system.errors import UserError, brief
from seg2any.system.weights import folder_digest, weights_fingerprint

# Of adapters on the hub, relative to their folder.
ADAPTER_FILES = (f"{DEFAULT}/*.safetensors", f"{COND}/*.safetensors", CARD_FILE)
OF_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, SafetensorError)
NETWORK = ("httpx", "httpx2", "requests", "urllib3")  # packages whose errors the hub's client lets through
BASE = ("--pretrained_model_name_or_path", "--base_parts")


def read_facts(model: str | None, base_parts: str | None = None) -> ModelFacts:
    """Read pixels per token and the tokenizer of a base model; None: FLUX.1's sizes, and tokens are estimated.

    Raises UserError.
    """
    if model is None:
        estimate = token_estimate
        return ModelFacts(estimate.PIXELS_PER_TOKEN, estimate.count_tokens, estimate.unknown_parts, are_counted=False)
    pixels_per_token, tokenizer = read_small_files(model, base_parts)
    return ModelFacts(
        pixels_per_token,
        count_tokens=lambda text: len(tokenizer(text, verbose=False).input_ids),
        unknown_parts=partial(unknown_parts, tokenizer),
        world=read_world(model),
    )


def read_small_files(model: str, base_parts: str | None = None) -> tuple[int, PreTrainedTokenizerBase]:
    """Read pixels per token and the captions' tokenizer of a base model. Raises UserError."""
    with explained(model, base_parts):
        return weightless.read_small_files(model, base_parts)


def read_adapter_card(adapter: Path | None) -> AdapterCard | None:
    """Read how an adapter folder was trained, None without one; load no weights.

    Raises UserError.
    """
    if adapter is None:
        return None
    file = weights_file(adapter, DEFAULT)
    if file is None:
        raise UserError(
            f"--lora_ckpt_path {adapter}: no {DEFAULT}/{WEIGHTS_FILE} in it; "
            f"give the folder that holds {DEFAULT}/ and {COND}/"
        )
    try:
        with safe_open(file, "pt") as opened:
            card = read_card(adapter, opened.metadata() or {})
    except SafetensorError as error:
        raise UserError(f"{file}: is damaged ({brief(error, 160)}); copy it again") from error
    return card if weights_file(adapter, COND) else card.without_condition()


def local_adapter(adapter: Path | None) -> Path | None:
    """Return the folder of adapters on the disk; those that owner/name or owner/name/folder means are downloaded.

    Raises UserError.
    """
    if adapter is None or adapter.exists() or not hub.names_repository(adapter):
        return adapter
    return hub.fetch_folder(adapter, "--lora_ckpt_path", f"{DEFAULT}/{WEIGHTS_FILE}", ADAPTER_FILES)


def adapter_folder(model: str, adapter: Path | None, fold: bool = False) -> Path | None:
    """Return the folder of the adapters on the disk: as given, else inside a model that was saved with adapters.

    Raises UserError for given ones where others are folded in, and if `fold` has nothing to do.
    """
    inside, is_folded = saved_adapters(model), folded_adapters(model) is not None
    if is_folded and adapter:
        raise UserError(
            f"--lora_ckpt_path {adapter}: {model} has its adapters folded in already; leave --lora_ckpt_path out, "
            "or give the model that the adapters were trained on"
        )
    if fold and (is_folded or not (inside or adapter)):
        reason = (
            f"{model} is folded already; leave it out" if is_folded else "there is no adapter; give --lora_ckpt_path"
        )
        raise UserError(f"--fold: {reason}")
    return local_adapter(adapter) or inside


def known_model(model: str, base_parts: str | None = None) -> dict:
    """Identify a model for a recipe: path and fingerprint of a folder or file, or the id on the hub.

    Raises UserError for a file that cannot be read.
    """
    folder = Path(model)
    if folder.is_file():
        source = find_source(model, base_parts)
        hub = {} if source.folder else {"parts": source.pipeline}
        fingerprint = source.fingerprint(Path(source.pipeline), ("transformer",) if hub else Flux1Pipeline.NETWORKS)
        return {"path": model, "fingerprint": fingerprint, **hub}
    if not folder.is_dir():
        return {"id": model}
    parts = (*Flux1Pipeline.NETWORKS, *(f"{ADAPTERS}/{name}" for name in (DEFAULT, COND)))  # adapters of a folded model
    return {"path": model, "fingerprint": weights_fingerprint(folder, parts)}


def known_adapter(adapter: Path) -> dict:
    """Identify adapters for a recipe: path or id on the hub, and digest."""
    return {"path": str(adapter), "sha256": folder_digest(local_adapter(adapter))}


@contextlib.contextmanager
def explained(model: str, base_parts: str | None = None, keys: tuple[str, str] = BASE) -> Iterator[None]:
    """Turn the libraries' errors about a missing or damaged model into a UserError.

    Before anything is loaded, the hub is asked for the model if it is not on the disk.

    keys  names of both values for messages
    """
    key, model = (keys[1], base_parts) if base_parts else (keys[0], model)
    try:
        hub.check_access(model, "model_index.json")
        yield
    except UserError:
        raise
    except Exception as error:
        is_network = type(error).__module__.partition(".")[0] in NETWORK
        if not is_network and not isinstance(error, OF_DAMAGE):
            raise
        if Path(model).exists():
            reason = f"cannot be loaded ({brief(error, 160)}); is the folder complete?"
            raise UserError(f"{key} {model}: {reason}") from error
        raise UserError(f"{key} {model}: {hub.problem(model, error)}") from error
