"""Compare backends with the formula and the `dense` oracle, and check memory and refusals."""

from __future__ import annotations

import functools
import itertools
import logging
import math
from unittest import mock

import numpy as np
import pytest
import torch
from torch.nn.attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.scenes import SampleTokens
from seg2any.attention import choice, kernels, processor
from seg2any.attention import pattern as pattern_module
from seg2any.attention.attend import BACKENDS, AttentionPlan, attend
from seg2any.attention.choice import choose, work_of_groups
from seg2any.attention.flex import BLOCK, MOST_COMPILATIONS, block_mask, compiled, sorted_pattern
from seg2any.attention.grouped import grouping
from seg2any.attention.names import BACKEND_NAMES
from seg2any.attention.pattern import AttentionPattern, additive_mask
from seg2any.attention.settings import Attention, ConditionSettings
from seg2any.attention.tokens import TokenLayout, layout_tokens
from seg2any.system.errors import UserError
from tests.test_attention import OPTIONS, random_sample
from tests.tracked_memory import TrackedMemory

TRAIN_HERE = [name for name in BACKENDS if name != "flex"]


def random_batch(seed: int, n_samples: int = 3, grid: tuple[int, int] = (4, 5)) -> TokenLayout:
    """Draw layouts with overlaps, empty regions and padding; the last sample equals the first."""
    rng = np.random.default_rng(seed)
    samples = [random_sample(rng, int(rng.integers(0, 6)), grid) for _ in range(n_samples)]
    return layout_tokens([*samples, samples[0]])


def random_leaves(tokens: TokenLayout, seed: int = 0, n_heads: int = 2, head_dim: int = 8) -> torch.Tensor:
    """Draw query, key and value in one tensor [3, B, L, heads, d]."""
    return torch.randn(3, *tokens.kind.shape, n_heads, head_dim, generator=torch.Generator().manual_seed(seed))


def output_and_gradients(
    tokens: TokenLayout, rules: ConditionSettings, leaves: torch.Tensor, n_queries: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the output of all or the first queries, and the gradients of query, key and value."""
    leaves = leaves.clone().requires_grad_()
    output = AttentionPlan(tokens, rules).attend(0, leaves[0, :, :n_queries], *leaves[1:])
    weight = torch.linspace(-1, 1, output.numel()).view_as(output)
    return output.detach(), *torch.autograd.grad((output * weight).sum(), [leaves])


def named(rules: ConditionSettings, backend: str) -> ConditionSettings:
    return ConditionSettings(
        rules.attention_mask_method,
        rules.hard_attn_block_range,
        rules.cond2image_attention_weight,
        rules.cond_attention,
        rules.global_text_sees,
        backend,
    )


def test_all_names_are_there():
    assert tuple(BACKENDS) == BACKEND_NAMES


@pytest.mark.parametrize("name", TRAIN_HERE)
def test_backends_equal_the_formula(name):
    tokens = layout_tokens([random_sample(np.random.default_rng(seed), 3, (3, 4)) for seed in range(2)])
    query, key, value = random_leaves(tokens)
    for method, gamma in (("hard", 0.4), ("base", 1.0), ("place", 0.4)):
        if name == "grouped" and method == "place":
            continue
        rules = ConditionSettings(method, (0, 0), gamma, attention_backend=name)
        mask = additive_mask(tokens, rules.attention_of(0), rules)
        expected = torch.zeros_like(value)
        for b, head in itertools.product(range(2), range(2)):
            scores = query[b, :, head].double() @ key[b, :, head].double().T / math.sqrt(8)
            weights = (scores + mask[b, 0]).exp()
            expected[b, :, head] = (weights / weights.sum(-1, keepdim=True)).float() @ value[b, :, head]
        output = AttentionPlan(tokens, rules).attend(0, query, key, value)
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", [name for name in TRAIN_HERE if name != "dense"])
def test_outputs_and_gradients_equal_the_oracle_on_random_batches(name, seed):
    tokens = random_batch(seed)
    leaves = random_leaves(tokens, seed)
    for rules in OPTIONS:
        if name == "grouped" and rules.attention_mask_method == "place":
            continue
        expected = output_and_gradients(tokens, named(rules, "dense"), leaves)
        found = output_and_gradients(tokens, named(rules, name), leaves)
        for ours, oracle in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, oracle, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["sdpa", "grouped", "matmul"])
def test_no_and_hardly_any_guidance_for_all_queries_and_for_the_first(name):
    """Compare with the oracle at guidance 0 and nearly 0, with condition tokens among the queries or not."""
    tokens = random_batch(7, grid=(5, 6))
    leaves = random_leaves(tokens, 7)
    for method, weight, cond_attention in itertools.product(
        ("hard", "base", "place"), (0.0, 1e-6), ("bidirectional", "isolated")
    ):
        if (name, method) == ("grouped", "place"):
            continue
        rules = ConditionSettings(method, (0, 0), weight, cond_attention)
        for n_queries in (tokens.kind.shape[1], tokens.n_text + tokens.n_image):
            expected, found = (
                output_and_gradients(tokens, named(rules, backend), leaves, n_queries) for backend in ("dense", name)
            )
            for ours, oracle in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, oracle, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_equals_the_oracle(monkeypatch):
    monkeypatch.setattr(
        flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True
    )  # compiling takes seconds for every pattern
    for seed, rules in enumerate(
        [
            ConditionSettings("hard", (0, 0)),
            ConditionSettings("hard", (0, 0), 0.3, "isolated", "background"),
            ConditionSettings("base", (0, 0), 0.3),
            ConditionSettings("place", (0, 0), 0.3),
        ]
    ):
        tokens = random_batch(seed, grid=(11, 13))
        leaves = random_leaves(tokens)
        assert tokens.kind.shape[1] > BLOCK, "more than one block"
        expected, found = (AttentionPlan(tokens, named(rules, name)).attend(0, *leaves) for name in ("dense", "flex"))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_flex_is_compiled_once_for_all_lengths(monkeypatch):
    """With one more compilation for a batch and for weights; a compiler that computes eagerly stands in for CUDA's."""
    graphs = []
    attention = compiled(lambda graph, inputs: graphs.append(graph) or graph.forward)

    def lengths(batch: int, weight: float) -> None:
        for seed in range(4):
            sample = random_sample(np.random.default_rng(seed), 2 + seed, (9 + 4 * seed, 11))
            tokens = layout_tokens([sample] * batch)
            plan = sorted_pattern(AttentionPlan(tokens, ConditionSettings("hard", (0, 0), weight)).pattern(0))
            leaves = (x.transpose(1, 2) for x in torch.randn(3, *plan.keys.shape, 2, 16))
            attention(*leaves, score_mod=plan.score_mod, block_mask=plan.block_mask)

    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=MOST_COMPILATIONS):
        lengths(2, 1.0)
        n_once = len(graphs)
        lengths(2, 1.0)
        assert len(graphs) == n_once <= 2
        for batch, weight in ((3, 1.0), (1, 1.0), (2, 0.5), (1, 0.5)):
            lengths(batch, weight)
    assert len(graphs) <= MOST_COMPILATIONS // 2, len(graphs)


def test_flex_refuses_to_train_where_torch_cannot():
    tokens = random_batch(0)
    plan = AttentionPlan(tokens, ConditionSettings(attention_backend="flex"))
    with pytest.raises(UserError, match="'flex'"):
        plan.attend(0, *random_leaves(tokens).requires_grad_())


@pytest.mark.parametrize("most_mask_bytes", [2**28, 2**10])
@pytest.mark.parametrize("name", TRAIN_HERE)
def test_backends_agree_on_outputs_and_gradients_in_bfloat16_autocast(name, most_mask_bytes, monkeypatch):
    monkeypatch.setattr(pattern_module, "MOST_MASK_BYTES", most_mask_bytes)
    tokens = layout_tokens([random_sample(np.random.default_rng(i), 3, (5, 6)) for i in range(2)])
    leaves, results = random_leaves(tokens, 1, head_dim=16).requires_grad_(), {}
    for backend in ("dense", name):
        plan = AttentionPlan(tokens, ConditionSettings("hard", (0, 0), 0.5, attention_backend=backend))
        with torch.autocast("cpu", torch.bfloat16, enabled=backend == name):
            output = plan.attend(0, *leaves)
        results[backend] = torch.cat(
            [output.float()[None], *torch.autograd.grad(output.float().square().sum(), [leaves])]
        )
    assert (results[name] - results["dense"]).norm() < 0.01 * results["dense"].norm()


@pytest.mark.parametrize("name", BACKENDS)
def test_without_a_pattern_every_token_sees_every_token(name):
    tokens = layout_tokens([SampleTokens((4,), np.zeros((0, 2, 2), bool))])
    query, key, value = random_leaves(tokens)
    expected = torch.einsum(
        "bhqk,bkhd->bqhd", (torch.einsum("bqhd,bkhd->bhqk", query, key) / 8**0.5).softmax(-1), value
    )
    full_pattern = AttentionPattern.of(tokens, Attention.FULL, ConditionSettings("none"))
    for pattern in (None, full_pattern):
        torch.testing.assert_close(attend(query, key, value, pattern, name), expected, rtol=1e-5, atol=1e-6)


class Largest(TorchDispatchMode):
    """Record the number of elements of the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.n_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.n_elements = max([self.n_elements, *(x.untyped_storage().nbytes() // x.element_size() for x in tensors)])
        return result


def regions_side_by_side(n: int, size: int) -> SampleTokens:
    """Return n vertical stripes in the upper half of a square grid, background below."""
    masks = np.zeros((n, size, size), bool)
    for entity, columns in enumerate(np.array_split(np.arange(size), n)):
        masks[entity, : size // 2, columns] = True
    return SampleTokens((6,) + (3,) * n, masks, np.zeros((40, 2), int))


@functools.cache
def allocated(backend: str, method: str, training: bool) -> tuple[int, int, int]:
    """Measure a batch of two layouts: number of pairs, elements of the largest tensor, peak bytes."""
    tokens = layout_tokens([regions_side_by_side(8, 48), regions_side_by_side(3, 48)])
    leaves = random_leaves(tokens, n_heads=1).requires_grad_(training)
    plan = AttentionPlan(tokens, ConditionSettings(method, (0, 0), 0.5, attention_backend=backend))
    all_pairs = tokens.kind.numel() * tokens.kind.shape[1]
    limited = mock.patch.object(pattern_module, "MOST_MASK_BYTES", 4 * all_pairs // 5)
    with limited, Largest() as spy, TrackedMemory() as tracked, torch.set_grad_enabled(training):
        output = plan.attend(0, *leaves)
        if training:
            output.sum().backward()
    return all_pairs, spy.n_elements, tracked.peak


@pytest.mark.parametrize("training", [False, True], ids=["generation", "training"])
@pytest.mark.parametrize(("name", "share"), [("grouped", 8), ("sdpa", 4), ("matmul", 4), ("auto", 4)])
@pytest.mark.parametrize("method", ["hard", "base"])
def test_no_backend_allocates_anything_of_the_size_of_all_pairs(name, share, method, training):
    """Except the oracle, where masks are too large to keep. Nor may training keep all slices, which are as large."""
    all_pairs, largest, peak = allocated(name, method, training)
    _, largest_of_oracle, peak_of_oracle = allocated("dense", method, training)
    if (name, method) == ("grouped", "base"):
        share = 1.01  # every image token sees all keys, so grouped copies keys, not pairs
    elif training and torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        share = min(share, 4)  # without AVX2 torch has no fused attention, and writes the pairs of a group
    assert largest < all_pairs / share
    assert peak < peak_of_oracle / 2
    assert largest_of_oracle >= all_pairs, "the spy would see it"


@pytest.mark.parametrize("rules", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["sdpa", "matmul"])
def test_slices_of_the_queries_give_the_same_result_as_all_together(name, rules, monkeypatch):
    tokens = random_batch(5, grid=(8, 9))
    leaves = random_leaves(tokens)
    monkeypatch.setattr(pattern_module, "MOST_MASK_BYTES", 70 * tokens.kind.numel() * 4)
    for most in ("MOST_SCORES", "MOST_SCORES_BACKWARD", "FEW_PAIRS"):
        monkeypatch.setattr(kernels, most, 0)
    assert len(AttentionPlan(tokens, rules).pattern(0).slices(torch.float32)) == 2
    for n_queries in (None, tokens.n_text + tokens.n_image):
        expected, found = (
            output_and_gradients(tokens, named(rules, backend), leaves, n_queries) for backend in ("dense", name)
        )
        for ours, oracle in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, oracle, rtol=1e-5, atol=1e-5)
    expected, found = (AttentionPlan(tokens, named(rules, backend)).attend(0, *leaves) for backend in ("dense", name))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rules", OPTIONS, ids=str)
def test_generation_in_bfloat16_on_a_cpu_equals_the_oracle_up_to_rounding(rules, monkeypatch):
    monkeypatch.setattr(processor, "processor_of", lambda device: processor.Processor.SLOW_FUSED)
    tokens = random_batch(6, grid=(8, 9))
    leaves = random_leaves(tokens, head_dim=32).bfloat16()
    expected = AttentionPlan(tokens, named(rules, "dense")).attend(0, *leaves.float())
    for name in ("auto", "matmul", *(() if rules.attention_mask_method == "place" else ("grouped",))):
        found = AttentionPlan(tokens, named(rules, name)).attend(0, *leaves)
        assert found.dtype == torch.bfloat16
        assert (found.float() - expected).norm() < 0.01 * expected.norm(), name


@pytest.mark.parametrize("name", ["sdpa", "matmul"])
def test_blocks_and_steps_share_one_mask_and_one_kernel_call(name, monkeypatch):
    calls, tokens = [], layout_tokens([regions_side_by_side(8, 24)])
    kernel = processor.FUSED if name == "sdpa" else processor.PRODUCTS
    plain = getattr(kernels, kernel)
    monkeypatch.setattr(
        f"seg2any.attention.attend.{kernel}", lambda q, k, v, m: calls.append((q, k, v, m)) or plain(q, k, v, m)
    )
    plan = AttentionPlan(tokens, ConditionSettings("hard", (2, 3), attention_backend=name))
    leaves = random_leaves(tokens).bfloat16().requires_grad_()
    sum(plan.attend(block, *leaves).float().sum() for block in (0, 1, 2, 3, 0)).backward()
    assert len(calls) == 5, "forward once for each block, not again in the backward pass"
    assert len({mask.data_ptr() for *_, mask in calls}) == 2
    for *inputs, mask in calls:
        assert all(x.is_contiguous() and x.dtype == mask.dtype == torch.bfloat16 for x in inputs)
        assert mask.shape == (1, 1, tokens.kind.shape[1], tokens.kind.shape[1])


def test_rows_of_masks_are_aligned():
    """torch's CUDA kernel pads, and so copies, rows that are not aligned to 8 elements."""
    for n_regions in range(4):
        pattern = AttentionPattern.of(
            layout_tokens([regions_side_by_side(n_regions or 1, 5 + n_regions)]), Attention.SAA, ConditionSettings()
        )
        assert pattern.rows(slice(0, 7)).stride(2) % 8 == 0


def test_the_plan_of_flex_allocates_nothing_of_the_size_of_all_pairs():
    tokens = layout_tokens([regions_side_by_side(8, 32)])
    for method in ("hard", "base"):
        with Largest() as spy:
            sorted_pattern(AttentionPlan(tokens, ConditionSettings(method, (0, 0), 0.5)).pattern(0))
        assert spy.n_elements < tokens.kind.shape[1] ** 2 / 8


def test_samples_of_one_layout_are_computed_together():
    sample = regions_side_by_side(4, 8)
    pattern = AttentionPlan(layout_tokens([sample] * 3), ConditionSettings("hard", (0, 0))).pattern(0)
    (layout,) = grouping(pattern)
    assert layout.samples == (0, 1, 2)
    assert grouping(pattern) is grouping(pattern), "made once"
    two = AttentionPlan(layout_tokens([sample, regions_side_by_side(2, 8), sample]), ConditionSettings()).pattern(0)
    assert sorted(layout.samples for layout in grouping(two)) == [(0, 2), (1,)]


def test_grouped_computes_exactly_the_pairs_that_are_seen():
    for seed, attention in itertools.product(range(3), (Attention.AIA, Attention.SAA)):
        tokens, rules = random_batch(seed), ConditionSettings("hard", (0, 0), 0.5)
        n_seen = additive_mask(tokens, attention, rules).isfinite().sum()
        pattern, n_computed = AttentionPattern.of(tokens, attention, rules), 0
        for layout in grouping(pattern):
            for n_queries, group in zip(layout.sizes, layout.groups, strict=True):
                n_computed += len(layout.samples) * n_queries * sum(layout.sizes[number] for number in group.keys)
        assert n_computed == n_seen == work_of_groups(pattern)[0]


def test_grouped_refuses_place():
    with pytest.raises(UserError, match="'grouped'.*'place'"):
        ConditionSettings("place", attention_backend="grouped")


def test_block_masks_skip_what_no_token_sees_and_mark_what_all_see():
    rng = np.random.default_rng(0)
    for _ in range(5):
        sees = torch.from_numpy(rng.random((6, 6)) < 0.4)
        classes = torch.from_numpy(rng.integers(0, 6, (2, 4, 1)) + rng.integers(0, 2, (2, 4, BLOCK))).clamp(max=5)
        pairs = sees[classes.flatten(1)[:, :, None], classes.flatten(1)[:, None]]
        pairs = pairs.unflatten(2, (4, BLOCK)).unflatten(1, (4, BLOCK)).transpose(2, 3)  # [B, 4, 4, BLOCK, BLOCK]
        found = block_mask(classes.flatten(1), classes.flatten(1), sees)
        assert torch.equal(found.to_dense()[:, 0].bool(), pairs.any((-1, -2)))
        full = torch.zeros(2, 4, 4, dtype=torch.bool)
        for b, row in itertools.product(range(2), range(4)):
            full[b, row, found.full_kv_indices[b, 0, row, : found.full_kv_num_blocks[b, 0, row]]] = True
        assert torch.equal(full, pairs.all((-1, -2)))


def test_sorting_by_class_empties_blocks():
    tokens = layout_tokens([regions_side_by_side(8, 64)])
    pattern = AttentionPlan(tokens, ConditionSettings("hard", (0, 0))).pattern(0)
    as_they_come = torch.nn.functional.pad(pattern.classes.index, (0, -tokens.kind.shape[1] % BLOCK))
    unsorted = block_mask(as_they_come, as_they_come, pattern.log_weights.isfinite())
    assert sorted_pattern(pattern).block_mask.sparsity() > 1.5 * unsorted.sparsity()


class Everything(dict):
    """Costs that are the same for every processor and precision."""

    def __init__(self, costs: processor.Costs):
        super().__init__()
        self.costs = costs

    def __missing__(self, key: object) -> processor.Costs:
        return self.costs


@pytest.mark.parametrize(
    ("sample", "method", "call", "expected"),
    [
        (regions_side_by_side(4, 8), "hard", 10_000, "sdpa"),
        (regions_side_by_side(8, 48), "hard", 10_000, "grouped"),
        (regions_side_by_side(8, 48), "hard", 1_000_000, "sdpa"),
        (regions_side_by_side(8, 48), "base", 10_000, "sdpa"),
    ],
)
def test_auto_weighs_pairs_against_calls_and_logs_the_reason_once(sample, method, call, expected, monkeypatch, caplog):
    monkeypatch.setattr(choice, "_announced", set())
    monkeypatch.setattr(processor, "COSTS", Everything(processor.Costs(processor.FUSED, 1.0, call, 50)))
    tokens = layout_tokens([sample])
    leaves = random_leaves(tokens, n_heads=1)
    with caplog.at_level(logging.DEBUG, "seg2any"):
        for _ in range(2):
            plan = AttentionPlan(tokens, ConditionSettings(method, (0, 0)))
            assert choose(*leaves, plan.pattern(0)) == expected
            output = plan.attend(0, *leaves)
    (record,) = caplog.records
    assert f"auto: {expected} for generation" in record.message
    assert torch.equal(output, attend(*leaves, plan.pattern(0), expected))


def test_auto_computes_place_with_a_mask():
    sample = regions_side_by_side(8, 48)
    with_coverage = SampleTokens(sample.text_lengths, sample.masks, None, sample.masks.astype(np.float32))
    tokens = layout_tokens([with_coverage])
    pattern = AttentionPlan(tokens, ConditionSettings("place")).pattern(0)
    assert choose(*random_leaves(tokens, n_heads=1), pattern) != "grouped"


def test_the_work_of_groups_is_what_grouped_does(monkeypatch):
    for seed, attention in itertools.product(range(3), (Attention.AIA, Attention.SAA)):
        tokens, rules = random_batch(seed), ConditionSettings("hard", (0, 0), 0.5)
        pattern = AttentionPattern.of(tokens, attention, rules).with_queries(tokens.n_text + tokens.n_image)
        query, key, value = random_leaves(tokens)
        calls = []

        def count(q, k, v, mask, calls=calls):
            calls.append((q.shape[0] * q.shape[2] * k.shape[2], k.shape[0] * k.shape[2]))
            return kernels.fused(q, k, v, mask)

        monkeypatch.setattr(kernels, "KERNELS", dict.fromkeys(kernels.KERNELS, count))
        BACKENDS["grouped"](query[:, : pattern.n_queries], key, value, pattern)
        pairs, keys = (sum(column) for column in zip(*calls, strict=True))
        assert work_of_groups(pattern) == (pairs, keys, len(calls))
