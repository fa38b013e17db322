"""Upload a saved pipeline to the model hub, with a model card that says how to load it and what it may be used for."""

from __future__ import annotations

import os
import re
from pathlib import Path

from huggingface_hub import HfApi

from seg2any.adapters.card import AdapterCard
from seg2any.bases.flux1.recognise import is_flux1_dev

MODEL_CARD = "README.md"
HUB_ID = r"[\w.-]+/[\w.-]+"
LICENCE = {  # of everything made from FLUX.1-dev's weights
    "license": "other",
    "license_name": "flux-1-dev-non-commercial-license",
    "license_link": "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
}
TAGS = ("seg2any", "flux", "lora", "layout-to-image", "segmentation-mask-to-image")
BODY = """# {name}

A FLUX.1 pipeline with adapters of Seg2Any: segmentation masks and captions in, an image out. Every region has the shape
of its mask and shows what its caption says ([arXiv 2506.00596](https://arxiv.org/abs/2506.00596)).

```python
from seg2any import Seg2AnyPipeline

pipe = Seg2AnyPipeline.from_pretrained("{repo_id}")
images = pipe("layout.json").images  # or seg2any.Layout(masks, captions)
```
"""
PLAIN = """
This pipeline has no adapters: it makes images of the global caption only, until `pipe.load_adapters(folder)` adds some.
"""
TRAINING = """
How its adapters were trained, which generation follows by itself (`adapters/adapter.json`):

| | |
|---|---|
{rows}
"""


def upload(
    folder: str | os.PathLike,
    repo_id: str,
    card: AdapterCard | None,
    *,
    commit_message: str | None = None,
    create_pr: bool = False,
    private: bool | None = None,
    token: str | bool | None = None,
) -> str:
    """Create a repository if there is none, upload a saved folder, and return the address of the commit.

    card  of the folder's adapters

    A model card is written unless the repository has one. The arguments after it are those of huggingface_hub.
    """
    hub = HfApi(token=token)
    repo_id = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if not hub.file_exists(repo_id, MODEL_CARD):
        text = model_card(repo_id, card, is_flux1_dev(Path(folder)))
        (Path(folder) / MODEL_CARD).write_text(text, encoding="utf-8")
    message = commit_message or "Upload Seg2AnyPipeline"
    return hub.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, create_pr=create_pr)


def model_card(repo_id: str, card: AdapterCard | None, is_of_flux1_dev: bool) -> str:
    """Write a model card in Markdown with the hub's YAML header.

    card             of the adapters; None: a pipeline without
    is_of_flux1_dev  whether the weights are made from FLUX.1-dev's, whose licence then holds; of others none is named

    Folders of this machine are not named.
    """
    header = {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    base = card.base_model.partition("@")[0] if card is not None else ""
    if re.fullmatch(HUB_ID, base) and not Path(base).exists():
        header["base_model"] = base
    if is_of_flux1_dev:
        header |= LICENCE
    lines = [f"{key}: {value}" for key, value in header.items()] + ["tags:", *(f"- {tag}" for tag in TAGS)]
    body = BODY.format(name=repo_id.split("/")[-1], repo_id=repo_id)
    return "\n".join(["---", *lines, "---", "", body]) + (PLAIN if card is None else TRAINING.format(rows=_rows(card)))


def _rows(card: AdapterCard) -> str:
    facts = {
        "steps": card.step or "unknown",
        "data set": card.dataset if re.fullmatch(r"[\w .-]+", card.dataset) else "unknown",
        "image side": f"{card.resolution} px",
        "rank, alpha": f"{card.rank}, {card.alpha:g}",
        **{f"`{name}`": value for name, value in card.condition.to_json().items()},
    }
    return "\n".join(f"| {name} | {value} |" for name, value in facts.items())
