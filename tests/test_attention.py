"""Compare attention masks with a definition written pair by pair, and check their invariants."""

import itertools
import math

import numpy as np
import pytest
import torch

from benchmarks.scenes import SampleTokens
from seg2any.attention import pattern as pattern_module
from seg2any.attention.attend import AttentionPlan, attend
from seg2any.attention.pattern import additive_mask, picture
from seg2any.attention.rules import may_attend
from seg2any.attention.settings import Attention, ConditionSettings
from seg2any.attention.tokens import TokenLayout, layout_tokens
from seg2any.system.errors import UserError


def random_sample(rng: np.random.Generator, n: int, grid: tuple[int, int]) -> SampleTokens:
    """Draw overlapping, empty and full regions, some samples without captions or condition tokens."""
    masks = rng.random((n, *grid)) < rng.choice([0, 0.2, 0.6, 1], (n, 1, 1))
    lengths = (rng.choice([0, 3]), *rng.integers(0, 4, n))
    coverage = rng.choice([0, 0.25, 0.7, 1], (n, *grid)).astype(np.float32)
    return SampleTokens(
        tuple(int(length) for length in lengths), masks, rng.integers(0, 3, (rng.integers(4), 2)), coverage
    )


def weight_by_definition(
    sample: SampleTokens, q: tuple, k: tuple, attention: Attention, rules: ConditionSettings
) -> float:
    """Return the attention weight of two tokens by the table of the method's description.

    Tokens are named ("global",), ("region", i), ("image", x), ("cond",), ("text pad",) and ("cond pad",).
    """

    def entities(token):
        return {i for i, mask in enumerate(sample.masks) if mask.ravel()[token[1]]}

    is_aia, isolated = attention is Attention.AIA, rules.cond_attention == "isolated"
    match q[0], k[0]:
        case ("text pad", "text pad") | ("cond pad", "cond pad") | ("cond", "cond"):
            return 1
        case ("cond", other) if other == "image":
            return 0 if isolated else rules.cond2image_attention_weight
        case ("image", "cond"):
            return rules.cond2image_attention_weight
        case (a, b) if "pad" in a + b:
            return 0
        case (a, b) if attention is Attention.FULL:
            return 0 if a == "cond" and isolated else 1
        case (a, b) if "cond" in (a, b):
            return 0
        case ("global", "global"):
            return 1
        case ("region", "region"):
            return q[1] == k[1]
        case ("global", "image"):
            return 0 if is_aia and rules.global_text_sees == "background" and entities(k) else 1
        case ("image", "global"):
            return 0 if is_aia and entities(q) else 1
        case ("region", "image") | ("image", "region"):
            (_, entity), (_, token) = (q, k) if q[0] == "region" else (k, q)
            if rules.attention_mask_method == "place":
                return sample.coverage[entity].ravel()[token]
            return sample.masks[entity].ravel()[token]
        case ("image", "image"):
            return not is_aia or not entities(q) or bool(entities(q) & entities(k))
        case ("global", "region") | ("region", "global"):
            return 0
    raise AssertionError((q, k))


def names(sample: SampleTokens, tokens: TokenLayout) -> list[tuple]:
    text = [("global",)] * sample.text_lengths[0]
    for i, length in enumerate(sample.text_lengths[1:]):
        text += [("region", i)] * length
    cond = [("cond",)] * len(sample.cond_positions)
    text += [("text pad",)] * (tokens.n_text - len(text))
    return text + [("image", x) for x in range(tokens.n_image)] + cond + [("cond pad",)] * (tokens.n_cond - len(cond))


OPTIONS = [
    ConditionSettings(method, (0, 0), weight, cond_attention, global_text_sees)
    for method, weight, cond_attention, global_text_sees in itertools.product(
        ("hard", "base", "place", "none"), (1.0, 0.3), ("bidirectional", "isolated"), ("all", "background")
    )
]


@pytest.mark.parametrize("n_entities", [(1, 1), (2, 5), (0, 3), (63, 8)])
def test_masks_equal_the_definition(n_entities):
    rng = np.random.default_rng(sum(n_entities))
    samples = [random_sample(rng, n, (3, 2)) for n in n_entities]
    tokens = layout_tokens(samples)
    for rules in OPTIONS if max(n_entities) < 10 else OPTIONS[:1]:
        attention = rules.attention_of(0)
        mask = additive_mask(tokens, attention, rules)
        for b, sample in enumerate(samples):
            token_names = names(sample, tokens)
            expected = [
                [weight_by_definition(sample, q, k, attention, rules) for k in token_names] for q in token_names
            ]
            expected = torch.tensor(expected, dtype=torch.float64).log().float()
            torch.testing.assert_close(mask[b, 0], expected, rtol=0, atol=1e-7)


def test_no_row_is_fully_masked():
    rng = np.random.default_rng(7)
    for rules in OPTIONS:
        tokens = layout_tokens([random_sample(rng, n, (4, 3)) for n in (0, 1, 6)])
        for attention in {rules.attention_of(0), rules.attention_of(1)}:
            assert additive_mask(tokens, attention, rules).isfinite().any(-1).all()
    without_guidance = ConditionSettings(cond2image_attention_weight=0)
    assert additive_mask(tokens, Attention.AIA, without_guidance).isfinite().any(-1).all()


def test_a_sample_has_the_same_mask_alone_and_in_a_batch():
    rng = np.random.default_rng(9)
    samples = [random_sample(rng, n, (3, 3)) for n in (2, 4, 1)]
    batch = layout_tokens(samples)
    for rules, (b, sample) in itertools.product(OPTIONS, enumerate(samples)):
        real = torch.tensor(["pad" not in name[0] for name in names(sample, batch)])
        in_batch = additive_mask(batch, rules.attention_of(0), rules)[b, 0][real][:, real]
        single = layout_tokens([sample])
        real = torch.tensor(["pad" not in name[0] for name in names(sample, single)])
        assert torch.equal(in_batch, additive_mask(single, rules.attention_of(0), rules)[0, 0][real][:, real])


def test_the_hard_range_is_inclusive():
    rules = ConditionSettings("hard", (2, 4))
    assert [rules.attention_of(block) is Attention.AIA for block in range(6)] == [False, False, True, True, True, False]
    assert {ConditionSettings("base", (0, 9)).attention_of(3), ConditionSettings("place", (0, 9)).attention_of(3)} == {
        Attention.SAA
    }


@pytest.mark.parametrize(
    "field, value",
    [
        ("attention_mask_method", "soft"),
        ("hard_attn_block_range", (3, 2)),
        ("hard_attn_block_range", (1,)),
        ("hard_attn_block_range", 5),
        ("hard_attn_block_range", (0.5, 2)),
        ("cond2image_attention_weight", -1.0),
        ("cond2image_attention_weight", 2.0),
        ("cond2image_attention_weight", "1"),
        ("cond2image_attention_weight", math.nan),
        ("cond_attention", "one-way"),
        ("global_text_sees", "nothing"),
    ],
)
def test_invalid_settings_are_refused(field, value):
    with pytest.raises(UserError, match=field):
        ConditionSettings(**{field: value})


@pytest.mark.parametrize("name", ["flash", "_flash_3_hub", "flash_varlen", "sage_varlen", "xformers", "typo"])
def test_backends_that_lose_the_mask_are_refused_by_name(name):
    with pytest.raises(UserError, match=f"{name}.*use one of auto, sdpa, grouped, flex, matmul, dense"):
        ConditionSettings(attention_backend=name)
    with pytest.raises(UserError, match="the regions vanish|compares it" if name != "typo" else "use one of"):
        attend(*torch.ones(3, 1, 2, 1, 4), attention_backend=name)


def test_a_plan_evaluates_the_rule_once_and_builds_each_mask_once(monkeypatch):
    asked = []

    def count(*arguments):
        asked.append(arguments[4])
        return may_attend(*arguments)

    monkeypatch.setattr(pattern_module, "may_attend", count)
    tokens = layout_tokens([random_sample(np.random.default_rng(0), 3, (3, 3))])
    plan = AttentionPlan(tokens, ConditionSettings("hard", (1, 2)))
    masks = [plan.mask(block) for block in range(4)] + [plan.mask(block) for block in range(4)]
    assert asked == [Attention.SAA, Attention.AIA]
    assert masks[0] is masks[3] is masks[4] and masks[1] is masks[2] and masks[0] is not masks[1]
    assert masks[0].shape[1] == 1, "one mask for all heads"


def test_plain_attention_without_padding_needs_no_mask():
    plain = layout_tokens([SampleTokens((4,), np.zeros((0, 2, 2), bool))])
    padded = layout_tokens([SampleTokens((length,), np.zeros((0, 2, 2), bool)) for length in (4, 2)])
    assert AttentionPlan(plain, ConditionSettings("none")).mask(0) is None
    assert AttentionPlan(padded, ConditionSettings("none")).mask(0) is not None


def test_place_without_coverage_is_refused():
    tokens = layout_tokens([SampleTokens((1, 1), np.ones((1, 2, 2), bool))])
    with pytest.raises(UserError, match="place"):
        AttentionPlan(tokens, ConditionSettings("place")).mask(0)


def test_picture_colours_what_is_seen():
    tokens = layout_tokens([SampleTokens((1, 1), np.array([[[True, False]]]))])
    image = picture(tokens, Attention.AIA, ConditionSettings())
    seen = additive_mask(tokens, Attention.AIA, ConditionSettings())[0, 0].isfinite().numpy()
    assert image.shape == (4, 4, 3) and image.dtype == np.uint8
    assert np.array_equal((image != 255).any(-1), seen)
