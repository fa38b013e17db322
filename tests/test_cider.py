"""CIDEr against hand-computed cases, a computation by dense vectors, and numbers of COCO's own evaluation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from seg2any.evaluation.metrics.bootstrap import interval
from seg2any.evaluation.metrics.caption_tokens import caption_tokens
from seg2any.evaluation.metrics.cider import References, cider
from seg2any.system.errors import UserError

# Caption, references and score; recorded from pycocoevalcap 1.2 with its Java tokenizer.
RECORDED = {
    "park": (
        "A man's dog runs in the park.",
        ["A man and his dog run in the park.", "The man's dog is running (fast) in the park!"],
        2.6149891546119686,
    ),
    "kitchen": (
        "Two red-haired women can't find the 2.5 l pot; 50% of it is left.",
        ["Two red-haired women cook in a kitchen.", "The women can't find the 2.5 l pot."],
        1.8513557034690193,
    ),
    "street": ("a bus", ["A double-decker bus on a street in the U.K. near a shop."], 0.25388356245429505),
    "same": ("A cat sits on a mat, and a bird flies by.", ["A cat sits on a mat, and a bird flies by."], 10.0),
    "none": ("", ["Three kites over the sea."], 0.0),
}
TOKENS = {  # as the Java tokenizer splits them
    "A woman's red jacket, and the dogs' toys.": "a woman 's red jacket and the dogs toys",
    "They don't; can't, won't and cannot see “it”.": "they do n't ca n't wo n't and can not see it",
    "It’s 3.5 m long: 1,000 people and/or 50% of $20 #1 cats & dogs.": (
        "it 's 3.5 m long 1,000 people and/or 50 % of $ 20 # 1 cats & dogs"
    ),
    "a t-shirt -- near the U.S. flag at 5:30 p.m. yesterday...": "a t-shirt near the u.s. flag at 5:30 p.m. yesterday",
    "gonna; 80's music, the '90s, o'clock, e-mail – really—yes": (
        "gon na 80 's music the '90s o'clock e-mail really yes"
    ),
    "I'm, I've, he'd, we'll, you're": "i 'm i 've he 'd we 'll you 're",
    "A CAFÉ, nai\u0308ve fac\u0327ade": "a café naïve façade",
    " . ": "",
}


@pytest.mark.parametrize("text", TOKENS)
def test_tokens_are_those_of_the_java_tokenizer(text):
    assert caption_tokens(text) == TOKENS[text].split()


def test_scores_are_those_of_cocos_evaluation():
    references = References({key: texts for key, (_, texts, _) in RECORDED.items()})
    found = cider("CIDEr", {key: caption for key, (caption, _, _) in RECORDED.items()}, references)
    assert found.per_sample == pytest.approx({key: score for key, (*_, score) in RECORDED.items()}, abs=1e-12)
    assert found.value == pytest.approx(2.9440456841070564, abs=1e-12)
    low, high = interval(found)
    assert 0 <= low < found.value < high <= 10


@pytest.mark.parametrize(
    ("caption", "score"),
    [
        ("a red cat", 7.5),  # nothing of four tokens
        ("the blue dog sits", 0.0),
        ("a a a", 0.0),  # in every sample's reference, so of no weight
        ("a red dog", 2.5),  # 1/2 for one token and for two
        ("red red red", 2.5 / (3 * math.sqrt(2))),  # counted once, as the reference has it
        ("red cat", 10 / 4 * (1 + 1 / math.sqrt(2)) * math.exp(-1 / 72)),  # one token less
    ],
)
def test_scores_are_those_computed_by_hand(caption, score):
    references = References({"cat": ["a red cat"], "dog": ["a blue dog"]})
    assert references.score("cat", caption) == pytest.approx(score, abs=1e-12)


def test_identical_captions_reach_ten_and_longer_ones_fall_as_a_bell():
    references = References({"cat": ["red " + "a " * 6], "dog": ["a blue dog on a mat"]})
    assert references.score("dog", "A blue dog on a mat!") == pytest.approx(10)
    assert references.score("cat", "red") == pytest.approx(2.5 * math.exp(-36 / 72))


def test_scores_are_those_of_dense_vectors():
    rng = np.random.default_rng(0)
    words = ["a", "the", "red", "blue", "cat", "dog", "on", "mat"]

    def text():
        return " ".join(rng.choice(words, rng.integers(1, 12)))

    references = {str(i): [text() for _ in range(rng.integers(1, 4))] for i in range(7)}
    captions = {key: text() for key in references if key != "6"}  # the last one is not described
    found = cider("CIDEr", captions, References(references))
    for key, expected in dense_scores(captions, references).items():
        assert found.per_sample[key] == pytest.approx(expected, abs=1e-9)
    assert found.per_sample["6"] == 0 and found.value == pytest.approx(sum(found.per_sample.values()) / 7)


def dense_scores(captions, references):
    """Compute CIDEr-D from one vector over all n-grams of all texts for each text."""
    texts = [*captions.values(), *(text for own in references.values() for text in own)]
    scores = dict.fromkeys(references, 0.0)
    for n in (1, 2, 3, 4):
        listed = sorted({tuple(t.split()[i : i + n]) for t in texts for i in range(len(t.split()) - n + 1)})

        def counts(text, n=n, listed=listed):
            split = text.split()
            return np.array([sum(tuple(split[i : i + n]) == one for i in range(len(split))) for one in listed])

        held = sum(np.any([counts(text) > 0 for text in own], axis=0).astype(int) for own in references.values())
        weights = np.log(len(references) / np.maximum(held, 1))
        for key, caption in captions.items():
            for text in references[key]:
                a, b = counts(caption) * weights, counts(text) * weights
                norm = np.linalg.norm(a) * np.linalg.norm(b)
                bell = np.exp(-((len(caption.split()) - len(text.split())) ** 2) / 72)
                scores[key] += 2.5 * bell * (np.minimum(a, b) @ b) / norm / len(references[key]) if norm else 0
    return scores


def test_one_sample_alone_has_no_weights():
    with pytest.raises(UserError, match="CIDEr: needs references of at least two samples; evaluate more"):
        References({"cat": ["a red cat"]})
