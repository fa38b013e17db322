"""Adapter cards: found in both places, broken ones reported, absent ones replaced by the published settings."""

import json
from dataclasses import fields, replace

import pytest
from safetensors.torch import load_file, save_file

from seg2any.adapters.files import COND, DEFAULT, WEIGHTS_FILE, AdapterCard, load_adapters, save_adapters
from seg2any.attention.settings import ConditionSettings, settings_of
from seg2any.system.errors import UserError
from tests.tiny_flux import adapted, tiny


def test_the_card_travels_in_both_places(tmp_path):
    model = adapted()
    card = AdapterCard("local/model", "base", (1, 2), resolution=256, rank=3, alpha=6, dataset="shapes", step=7)
    save_adapters(model, tmp_path, card)
    read = load_adapters(tiny(), tmp_path)
    assert read == replace(card, seg2any_version=read.seg2any_version) and not read.assumed
    assert read.rules().method == "base" and read.rules().hard_attn_block_range == (1, 2)
    (tmp_path / "adapter.json").unlink()
    assert load_adapters(tiny(), tmp_path) == read


def test_a_published_folder_gets_the_published_defaults_and_says_so(tmp_path):
    save_adapters(adapted(), tmp_path, AdapterCard(step=7))
    (tmp_path / "adapter.json").unlink()
    for name in (DEFAULT, COND):
        file = tmp_path / name / WEIGHTS_FILE
        save_file(load_file(file), file, {"format": "pt"})
    card = load_adapters(tiny(), tmp_path)
    assert card == AdapterCard(assumed=True) and card.rules().method == "hard"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        '{"step": "many"}',
        '{"attention_mask_method": "soft"}',
        '{"resolution": null}',
        '{"dataset": "\xe9"}',
    ],
)
def test_a_broken_card_is_one_clear_line(tmp_path, text):
    save_adapters(adapted(), tmp_path, AdapterCard())
    (tmp_path / "adapter.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="adapter.json: not an adapter card") as caught:
        load_adapters(tiny(), tmp_path)
    assert "\n" not in str(caught.value)


def test_contours_that_cannot_be_drawn_are_refused():
    text = json.dumps(json.loads(AdapterCard().to_json()) | {"contour_thickness": 3})
    with pytest.raises(UserError, match="card: contour_thickness is 3, and contours are drawn 1 pixel wide"):
        AdapterCard.from_json(text, "card")


def test_cards_of_newer_versions_are_read():
    text = json.dumps(json.loads(AdapterCard(step=3).to_json()) | {"invented_later": 1})
    assert AdapterCard.from_json(text, "card").step == 3


def test_every_setting_of_the_condition_travels_with_the_adapter():
    other = {
        "is_use_cond_token": False,
        "is_filter_cond_token": False,
        "cond_scale_factor": 4,
        "region_assignment": "coverage",
        "max_sequence_length": 7,
        "regional_max_sequence_length": 3,
        "vae_posterior": "mode",
    }
    assert {field.name for field in fields(ConditionSettings)} == other.keys() | {"rules"}
    settings = settings_of(AdapterCard(**other))
    assert {name: getattr(settings, name) for name in other} == other
