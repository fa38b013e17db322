"""The schemes that benchmarks compare compute the same thing."""

import pytest
import torch

from benchmarks.published_scheme import published_scheme
from seg2any.attention import AttentionRules
from tests.tiny_flux import CONFIG, adapted, condition, run, sample


@pytest.mark.parametrize("rules", [AttentionRules("base"), AttentionRules("hard", (1, 2), 0.5)], ids=["base", "hard"])
def test_the_published_scheme_computes_our_outputs_and_gradients(rules):
    model = adapted()
    samples = [sample(1, n_entities=3), sample(2, n_entities=0, n_cond=0), sample(3, n_entities=2, n_cond=5)]
    results = []
    for scheme in (False, True):
        model.zero_grad()
        given = condition(samples, rules)
        if scheme:
            with published_scheme(CONFIG["num_attention_heads"]):
                output = run(model, given)
        else:
            output = run(model, given)
        output.square().mean().backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((output.detach(), grads))
    (ours, our_grads), (published, their_grads) = results
    torch.testing.assert_close(published, ours, rtol=1e-5, atol=5e-6)
    for name, grad in our_grads.items():
        torch.testing.assert_close(their_grads[name], grad, rtol=1e-4, atol=1e-7)
