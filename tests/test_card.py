"""Test adapter cards: both of their places, damaged ones, missing ones, and the presets."""

import json
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from seg2any.adapters.files import COND, DEFAULT, WEIGHTS_FILE, AdapterCard, load_adapters, save_adapters
from seg2any.attention.settings import CARD_NAMES, NAMES, PUBLISHED, ConditionSettings, published
from seg2any.system.errors import UserError
from seg2any.training import config
from tests.tiny_flux import adapted, tiny


def test_the_card_travels_in_both_places(tmp_path):
    model = adapted()
    card = AdapterCard(
        "local/model", ConditionSettings("base", (1, 2)), resolution=256, rank=3, alpha=6, dataset="shapes", step=7
    )
    save_adapters(model, tmp_path, card)
    read = load_adapters(tiny(), tmp_path)
    assert read == replace(card, seg2any_version=read.seg2any_version) and not read.assumed
    assert read.condition.attention_mask_method == "base" and read.condition.hard_attn_block_range == (1, 2)
    (tmp_path / "adapter.json").unlink()
    assert load_adapters(tiny(), tmp_path) == read


def test_a_folder_without_a_card_gets_the_published_defaults_as_assumed(tmp_path):
    save_adapters(adapted(), tmp_path, AdapterCard(step=7))
    (tmp_path / "adapter.json").unlink()
    for name in (DEFAULT, COND):
        file = tmp_path / name / WEIGHTS_FILE
        save_file(load_file(file), file, {"format": "pt"})
    card = load_adapters(tiny(), tmp_path)
    assert card == AdapterCard(assumed=True) and card.condition == published("sacap_1m")


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
    with pytest.raises(UserError, match="adapter.json: ") as caught:
        load_adapters(tiny(), tmp_path)
    assert "\n" not in str(caught.value)


def test_contours_that_cannot_be_drawn_are_refused():
    text = json.dumps(json.loads(AdapterCard().to_json()) | {"contour_thickness": 3})
    with pytest.raises(UserError, match="card: contour_thickness is 3"):
        AdapterCard.from_json(text, "card")


def test_cards_of_newer_versions_are_read():
    text = json.dumps(json.loads(AdapterCard(step=3).to_json()) | {"invented_later": 1})
    assert AdapterCard.from_json(text, "card").step == 3


def test_every_setting_but_those_of_a_run_travels_with_the_adapter():
    other = ConditionSettings(
        attention_mask_method="base",
        hard_attn_block_range=(1, 2),
        cond_attention="isolated",
        global_text_sees="background",
        is_use_cond_token=False,
        is_filter_cond_token=False,
        cond_scale_factor=4,
        region_assignment="coverage",
        max_sequence_length=7,
        regional_max_sequence_length=3,
        vae_posterior="mode",
    )
    default = ConditionSettings()
    assert {name for name in NAMES if getattr(other, name) != getattr(default, name)} == {*CARD_NAMES}
    assert {*NAMES} - {*CARD_NAMES} == {"cond2image_attention_weight", "attention_backend"}
    assert AdapterCard.from_json(AdapterCard(condition=other).to_json(), "card").condition == other


@pytest.mark.parametrize("data_set", PUBLISHED)
def test_presets_are_what_the_shipped_configs_train(data_set):
    """A preset lists how a published checkpoint differs from the published code's defaults at 512 px."""
    assert config.load([f"config/seg2any_{data_set}.yaml"]).model.condition == published(data_set)
    assert (ConditionSettings().cond_scale_factor, published("sacap_1m").cond_scale_factor) == (1, 2)


def test_a_data_set_without_published_adapters_has_no_preset():
    with pytest.raises(UserError, match="coco_stuff"):
        published("coco")
