"""Read the small files of a model and its adapters, before any weight is loaded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from seg2any.adapters.card import AdapterCard, read_card
from seg2any.adapters.lora_file import WEIGHTS_FILE, weights_file
from seg2any.adapters.routing import COND, DEFAULT
from seg2any.bases.flux1 import weightless
from seg2any.bases.flux1.pipeline import Flux1Pipeline
from seg2any.bases.flux1.saved import ADAPTERS, folded_adapters, saved_adapters
from seg2any.bases.flux1.source import find_source
from seg2any.bases.text import unknown_parts
from seg2any.generate.preflight import ModelFacts
from seg2any.system.errors import UserError, brief
from seg2any.system.weights import folder_digest, weights_fingerprint

OF_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, SafetensorError)
NETWORK = ("httpx", "httpx2", "requests", "urllib3")  # packages whose errors the hub's client lets through


def read_facts(model: str, base_parts: str | None = None) -> ModelFacts:
    """Read pixels per token and the tokenizer of a base model. Raises UserError."""
    pixels_per_token, tokenizer = read_small_files(model, base_parts)
    return ModelFacts(
        pixels_per_token,
        count_tokens=lambda text: len(tokenizer(text, verbose=False).input_ids),
        unknown_parts=partial(unknown_parts, tokenizer),
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


def adapter_folder(model: str, adapter: Path | None, fold: bool = False) -> Path | None:
    """Return the folder of the adapters: as given, else inside a model that was saved with adapters.

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
    return adapter or inside


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


def known_adapter(folder: Path) -> dict:
    """Identify a folder of adapters for a recipe: path and digest."""
    return {"path": str(folder), "sha256": folder_digest(folder)}


@contextlib.contextmanager
def explained(model: str, base_parts: str | None = None) -> Iterator[None]:
    """Turn the libraries' errors about a missing or damaged model into a UserError."""
    flag, model = ("base_parts", base_parts) if base_parts else ("pretrained_model_name_or_path", model)
    flag, folder = f"--{flag} {model}", Path(model)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        is_network = type(error).__module__.partition(".")[0] in NETWORK
        if not is_network and not isinstance(error, OF_DAMAGE):
            raise
        if folder.exists():
            raise UserError(f"{flag}: cannot be loaded ({brief(error, 160)}); is the folder complete?") from error
        raise UserError(f"{flag}: {_hub_problem(model, error)}") from error


def _hub_problem(model: str, error: BaseException) -> str:
    while error is not None and not isinstance(error, HfHubHTTPError):  # the libraries wrap it, some several times
        cause, error = error, error.__cause__ or error.__context__
    if isinstance(error, GatedRepoError):
        return f"is gated; accept its licence at https://huggingface.co/{model} and log in with `hf auth login`"
    if error is not None and error.response is not None and error.response.status_code in (401, 403, 404):
        return "no such model on the hub, or it is private; check the id, and log in with `hf auth login`"
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no", "off"):
        return "no such folder, and HF_HUB_OFFLINE keeps the hub away; give a local folder or unset it"
    return f"no such folder, and the hub did not give it ({brief(error or cause, 160)}); check the id and the network"
