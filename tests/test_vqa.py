"""Questions about regions: contents, answers from an endpoint, and no repeated question."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

from seg2any.evaluation.metrics.item import Item
from seg2any.evaluation.vqa import questions as protocol
from seg2any.evaluation.vqa.anchors import NAME as ANCHORS
from seg2any.evaluation.vqa.anchors import anchored, anchors, area_under_curve
from seg2any.evaluation.vqa.answers import Answers, ask
from seg2any.evaluation.vqa.endpoint import EndpointJudge, request_body
from seg2any.evaluation.vqa.published import PROMPTS as PUBLISHED
from seg2any.evaluation.vqa.questions import Question, about_caption, about_regions, swapped_captions
from seg2any.evaluation.vqa.replies import read_attributes, read_yes_or_no, share_of_yes
from seg2any.evaluation.vqa.score import geometric_mean, published_scores, region_vqa, soft_scores
from seg2any.layout import Layout
from seg2any.layout.cut_out import MAGENTA, cut_out, outlined
from seg2any.system.errors import UserError
from seg2any.system.patience import NoAnswer, Patience
from tests.golden_root import REPOSITORY
from tests.stub_judge import RUBBISH, StubJudge, stub_judge

pytestmark = pytest.mark.slow

SOON = Patience(attempts=4, first_wait=0.01, longest_wait=0.05)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def yes_no(number: int) -> Question:
    return Question(f"s{number}", "spatial", "a cat", f"is it {number}?")


def judge(server: StubJudge, timeout: float = 5.0) -> EndpointJudge:
    return EndpointJudge(server.url, "stub", timeout)


def layout() -> Layout:
    masks = np.zeros((3, 40, 60), bool)
    masks[0, :, :30], masks[1, 5:25, 35:55], masks[2, 30:38, 40:50] = True, True, True
    return Layout(masks, ("a red striped wall", "a round blue clock", "a cat"))


WORDS = {
    "a red striped wall": {"colour": "red", "shape": "", "texture": "striped"},
    "a round blue clock": {"colour": "blue", "shape": "round", "texture": ""},
    "a cat": {"colour": "", "shape": "", "texture": ""},
}
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


# Questions


def test_changed_prompts_need_another_protocol():
    """Compare PROTOCOL and the prompts' digest with known values.

    Whoever changes a prompt has to change PROTOCOL, and then this line.
    """
    assert (protocol.PROTOCOL, protocol.PROMPTS_SHA256[:16]) == ("region-vqa-2", "016a4bd44d4dbe15")


def test_each_region_is_asked_for_what_its_caption_names():
    asked = list(about_regions("s", IMAGE, layout(), WORDS))
    assert [(question.kind, question.caption) for question in asked] == [
        ("spatial", "a red striped wall"),
        ("colour", "a red striped wall"),
        ("texture", "a red striped wall"),
        ("spatial", "a round blue clock"),
        ("colour", "a round blue clock"),
        ("shape", "a round blue clock"),
        ("spatial", "a cat"),
    ]
    assert "Is the colour blue?" in asked[4].text and "a round blue clock" in asked[4].text
    assert len({question.id for question in asked}) == len(asked)
    assert all(question.key == "s" and question.wants == "yes or no" for question in asked)
    curly = about_caption('a sign that says "{value}"')
    assert "{value}" in curly.text and curly.wants == "attributes"


def test_hidden_regions_are_left_out():
    masks = np.stack([layout().masks[1], np.ones((40, 60), bool)])
    asked = list(about_regions("s", IMAGE, Layout(masks, ("a cat", "a dog")), {}))
    assert [question.caption for question in asked] == ["a dog"]


def test_floor_asks_for_other_captions_where_they_differ():
    assert swapped_captions(layout()) == {0: "a round blue clock", 1: "a cat", 2: "a red striped wall"}
    same = Layout(layout().masks, ("a cat", "a cat", "a dog"))
    assert swapped_captions(same) == {0: "a dog", 1: "a dog", 2: "a cat"}
    assert swapped_captions(Layout(same.masks, ("a cat",) * 3)) == {}
    words = {**WORDS, "a round blue clock": {"colour": "red", "shape": "round", "texture": ""}}
    asked = list(about_regions("s", IMAGE, layout(), words, {0: "a round blue clock"}))
    assert [question.kind for question in asked] == ["spatial", "shape"]  # both are red: no floor for colour


def test_pictures_show_the_region():
    mask = layout().masks[1]
    drawn = outlined(IMAGE, mask)
    changed = (drawn != IMAGE).any(-1)
    assert (drawn[changed] == MAGENTA).all() and changed[5, 40] and not changed[15, 45] and not changed[0, 0]
    cut = cut_out(IMAGE, mask)
    assert cut.shape == (448, 448, 3)
    inside, corner = cut[224:230, 224:230].mean(), cut[:10, :10].mean()
    assert abs(inside - 127) < 100 and corner < 0.5 * 127  # the margin is dimmed
    assert outlined(np.zeros((600, 1500, 3), np.uint8), np.ones((60, 150), bool).repeat(10, 0).repeat(10, 1)).shape == (
        410, 1024, 3
    )  # fmt: skip


def test_ids_depend_on_everything_that_is_asked():
    def question(text: str = "?", image: np.ndarray = IMAGE, wants: str = "yes or no") -> str:
        return Question("s", "spatial", "c", text, (image,), wants).id

    other = IMAGE.copy()
    other[0, 0, 0] ^= 1
    ids = [question(), question("!"), question(image=other), question(image=IMAGE.reshape(60, 40, 3))]
    assert len({*ids, question(wants="attributes")}) == 5
    assert question() == Question("another sample", "spatial", "c", "?", (IMAGE.copy(),)).id


# Replies


def test_probability_of_yes():
    tokens = [("Yes", 0.3), (" yes", 0.1), ("Ġno", 0.1), ("NO.", 0.1), ("not", 0.4)]
    assert share_of_yes(tokens) == {"yes": pytest.approx(0.4 / 0.6), "by": "probabilities"}
    for rubbish in ([("maybe", 1.0)], [("yes", float("nan"))], []):
        with pytest.raises(NoAnswer):
            share_of_yes(rubbish)
    assert read_yes_or_no("Yes, it is", None) == {"yes": 1.0, "by": "text"}
    assert read_yes_or_no("no.", {"content": []}) == {"yes": 0.0, "by": "text"}
    for rubbish in ("", "maybe", "nothing"):
        with pytest.raises(NoAnswer):
            read_yes_or_no(rubbish, None)


def test_words_of_a_caption():
    text = 'Sure:\n```json\n{"colour": "Red", "shape": null, "texture": "fluffy"}\n```'
    # "fluffy" is dropped because the caption does not contain it.
    assert read_attributes(text, "a red wall") == {"colour": "Red", "shape": "", "texture": ""}
    for rubbish in ("", "red", '{"colour": "red"}', "[1]", '{"colour": '):
        with pytest.raises(NoAnswer):
            read_attributes(rubbish, "a red wall")


# The endpoint


def test_requests_are_what_openai_compatible_servers_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with stub_judge(p_yes=0.7) as server:
        question = next(about_regions("s", IMAGE, layout(), WORDS))
        assert judge(server).answer(question)["yes"] == pytest.approx(0.7, abs=1e-3)
        (body,) = server.bodies
        assert server.headers[0]["Authorization"] == "Bearer secret"
        answers = Answers(tmp_path / "answers.jsonl", judge(server))
        list(ask([question], answers))
    assert "secret" not in (tmp_path / "answers.jsonl").read_text()
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("stub", 0, 1)
    assert body["logprobs"] is True and body["top_logprobs"] == 20
    image, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": question.text}
    kind, encoded = image["image_url"]["url"].split(",")
    assert kind == "data:image/png;base64"
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_COLOR)
    assert (decoded[..., ::-1] == question.images[0]).all()
    assert "logprobs" not in request_body("m", about_caption("a cat"))


@pytest.mark.parametrize("fault", ["500", "503", "429", "408", "hangs up", "cut off", "neither", *RUBBISH])
def test_questions_are_repeated_after_faults_and_counted_once(tmp_path: Path, fault: str):
    with stub_judge(fault, fault, p_yes=0.8) as server:
        answers = Answers(tmp_path / "answers.jsonl", judge(server, timeout=60))
        questions = [yes_no(number) for number in range(3)]
        found = list(ask(questions, answers, concurrency=3, patience=SOON))
        assert [question.key for question, _ in found] == ["s0", "s1", "s2"]
        assert [answer["yes"] for _, answer in found] == [pytest.approx(0.8, abs=1e-3)] * 3
        assert set(server.seen.values()) == {3}
        assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == len(answers) == 3
        again = Answers(tmp_path / "answers.jsonl", judge(server))
        assert [answer for _, answer in ask(questions, again)] == [answer for _, answer in found]
        assert set(server.seen.values()) == {3}  # no question is asked twice


@pytest.mark.parametrize("fault", ["silent", "dripping"])
def test_a_judge_that_never_ends_its_reply_is_asked_again(tmp_path: Path, fault: str):
    with stub_judge(fault, p_yes=0.8) as server:
        patience = Patience(attempts=20, first_wait=0.01, longest_wait=0.05)  # a busy machine may time out more often
        answers = Answers(tmp_path / "answers.jsonl", judge(server, timeout=1))
        ((_, answer),) = ask([yes_no(0)], answers, patience=patience)
        assert answer["yes"] == pytest.approx(0.8, abs=1e-3) and server.requests > 1 and len(answers) == 1


def test_unanswered_questions_are_reported_and_asked_next_time(tmp_path: Path):
    with stub_judge(*["neither"] * SOON.attempts) as server:
        path = tmp_path / "answers.jsonl"
        found = list(ask([yes_no(0), yes_no(1)], Answers(path, judge(server)), patience=SOON))
        assert [answer for _, answer in found] == [None, None]
        whole, result = soft_scores([*found, (yes_no(2), {"yes": 1.0, "by": "text"})], "generated")
        assert whole.per_sample == {"s2": 1.0}  # regions with an unanswered question do not count
        assert result.extra["unanswered"] == 2 and result.extra["regions"] == 1
        assert result.extra["without_probabilities"] == 1
        assert soft_scores(found, "generated") == []
        found = list(ask([yes_no(0), yes_no(1)], Answers(path, judge(server)), patience=SOON))
        assert all(answer["yes"] > 0.5 for _, answer in found)


def test_an_unreachable_judge_ends_the_run_in_one_line(tmp_path: Path):
    with stub_judge() as server:
        url = server.url
    patience = Patience(attempts=2, first_wait=0.01, hopeless=3)
    answers = Answers(tmp_path / "answers.jsonl", EndpointJudge(url, "stub"))
    with pytest.raises(UserError, match="3 questions in a row have no answer, the last: http.*start again") as error:
        list(ask(map(yes_no, range(1000)), answers, 2, patience))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("fault", "message"), [("401", "OPENAI_API_KEY"), ("404", "model 'stub': .*told to.*check")])
def test_refused_requests_are_not_repeated(tmp_path: Path, fault: str, message: str):
    with stub_judge(fault) as server:
        with pytest.raises(UserError, match=message) as error:
            list(ask([yes_no(0)], Answers(tmp_path / "answers.jsonl", judge(server)), patience=SOON))
        assert server.requests == 1 and "\n" not in str(error.value)
    for url in ("localhost:8000", "ftp://x", "", "http://:8000", "http://x:port/v1", "http://x:99999", "http://a b/v1"):
        with pytest.raises(UserError, match="give an address such as"):
            EndpointJudge(url, "stub")


def test_a_key_is_sent_without_its_line_end_and_refused_if_no_header_can_hold_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret\n")
    with stub_judge() as server:
        judge(server).answer(yes_no(0))
        assert server.headers[0]["Authorization"] == "Bearer secret"
        monkeypatch.setenv("OPENAI_API_KEY", "")
        judge(server).answer(yes_no(0))
        assert "Authorization" not in server.headers[1]
    for key in ("two\nlines", "schlüssel"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(UserError, match="OPENAI_API_KEY: ") as error:
            EndpointJudge("http://localhost:8000/v1", "stub")
        assert key not in str(error.value)


def test_the_key_stays_with_the_address_that_was_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with stub_judge() as elsewhere, stub_judge("302") as server:
        server.location = f"{elsewhere.url}/chat/completions"
        with pytest.raises(UserError, match="redirects to .*which is not followed"):
            judge(server).answer(yes_no(0))
        assert server.requests == 1 and elsewhere.visits == 0
    with pytest.warns(UserWarning, match="OPENAI_API_KEY unencrypted"):
        EndpointJudge("http://10.1.2.3:8000/v1", "stub")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for url in ("https://10.1.2.3/v1", "http://localhost:8000/v1"):
            EndpointJudge(url, "stub")
        monkeypatch.delenv("OPENAI_API_KEY")
        EndpointJudge("http://10.1.2.3:8000/v1", "stub")


def test_a_judge_without_answers_gives_no_number(tmp_path: Path):
    """Ask so few questions that the run does not give up.

    None of them gets an answer.
    """

    class Silent:
        name = "silent"

        def answer(self, question: Question) -> dict:
            raise NoAnswer("no")

    item = Item("s", IMAGE, layout=layout())
    with pytest.raises(UserError, match="no question about a generated image has an answer"):
        answers = Answers(tmp_path / "answers.jsonl", Silent())
        region_vqa(lambda: [item], lambda: [item], answers, patience=Patience(1, 0.0))


def test_equal_questions_are_asked_once_and_count_for_each_region(tmp_path: Path):
    twins = [Question(key, "spatial", "c", "the same?") for key in ("a", "b", "b")]
    with stub_judge() as server:
        server.delay = 0.05
        answered = list(ask(twins, Answers(tmp_path / "answers.jsonl", judge(server)), concurrency=3))
        assert server.requests == 1
    _, result = soft_scores(answered, "generated")
    yes = answered[0][1]["yes"]
    assert result.extra["regions"] == 3 and result.parts["b"] == {"": (2 * yes, 2.0)} and 0.5 < yes < 1


def test_questions_are_open_together_but_not_more_than_allowed(tmp_path: Path):
    with stub_judge() as server:
        server.delay = 0.05
        made = []

        def questions():
            for number in range(40):
                made.append(number)
                yield yes_no(number)

        answered = ask(questions(), Answers(tmp_path / "answers.jsonl", judge(server)), concurrency=4)
        assert next(answered)[0].key == "s0"
        assert len(made) <= 4 * 4 + 2  # pictures are made shortly before their question
        assert [question.key for question, _ in answered] == [f"s{number}" for number in range(1, 40)]
        assert 2 <= server.most_open <= 4


def test_other_models_do_not_get_each_others_answers(tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    with stub_judge(p_yes=0.9) as server:
        list(ask([yes_no(0)], Answers(path, judge(server))))
        assert Answers(path, EndpointJudge(server.url, "other")).get(yes_no(0)) is None
        assert Answers(path, judge(server)).get(yes_no(0))["yes"] == pytest.approx(0.9, abs=1e-3)


def test_a_truncated_line_is_dropped_and_other_files_are_refused(tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    with stub_judge() as server:
        list(ask([yes_no(0), yes_no(1)], Answers(path, judge(server)), concurrency=1))
        whole = path.read_bytes()
        path.write_bytes(whole[:-10])
        answers = Answers(path, judge(server))
        assert len(answers) == 1
        list(ask([yes_no(0), yes_no(1)], answers))
        assert path.read_bytes() == whole and server.requests == 3
        path.write_text("not\nours\n")
        with pytest.raises(UserError, match="answers.jsonl: "):
            Answers(path, judge(server))


SCRIPT = """
import sys
from seg2any.evaluation.vqa.answers import Answers, ask
from seg2any.evaluation.vqa.endpoint import EndpointJudge
from seg2any.evaluation.vqa.questions import Question
questions = (Question(f"s{n}", "spatial", "a cat", f"is it {n}?") for n in range(30))
for _ in ask(questions, Answers(sys.argv[2], EndpointJudge(sys.argv[1], "stub")), concurrency=2):
    pass
"""


def test_a_killed_run_continues_where_it_stopped(tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    with stub_judge() as server:
        server.delay = 0.05
        run = [sys.executable, "-c", SCRIPT, server.url, str(path)]
        process = subprocess.Popen(run, cwd=REPOSITORY)
        while server.requests < 9 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        answered = path.read_bytes().count(b"\n")
        assert 5 <= answered < 30
        server.delay = 0
        questions = [yes_no(number) for number in range(30)]
        found = list(ask(questions, Answers(path, judge(server))))
        assert all(answer is not None for _, answer in found)
        # Only questions open at the kill are asked a second time.
        assert 30 <= server.requests <= 30 + 2 and max(server.seen.values()) <= 2
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == len({line["id"] for line in lines}) == 30


# The numbers


class Knows:
    """Stands in for a judge that knows the words of captions.

    It finds everything but cats in bright pictures and nothing in dark ones.
    """

    name = "knows"

    def __init__(self):
        self.asked: list[Question] = []

    def answer(self, question: Question) -> dict:
        self.asked.append(question)
        if question.wants == "attributes":
            return WORDS[question.caption]
        if question.images[0].mean() < 100:  # the dark image
            return {"yes": 0.2, "by": "probabilities"}
        return {"yes": 0.9 if question.caption != "a cat" else 0.4, "by": "probabilities"}


def test_numbers_come_with_ceiling_and_floor(tmp_path: Path):
    bright, dark = np.full((40, 60, 3), 255, np.uint8), np.zeros((40, 60, 3), np.uint8)
    masks = layout()
    judge = Knows()
    results = region_vqa(
        lambda: [Item("s0", bright, layout=masks), Item("s1", dark, layout=masks)],
        lambda: [Item("s0", bright, layout=masks), Item("s1", bright, layout=masks)],
        Answers(tmp_path / "answers.jsonl", judge),
        concurrency=1,
    )
    table = {(result.name, result.source): result for result in results}
    kinds = ("region", "spatial", "colour", "shape", "texture", "anchors")
    assert {name for name, _ in table} == {f"region-vqa-2 {kind}" for kind in kinds}
    spatial = table["region-vqa-2 spatial", "generated"]
    assert spatial.value == pytest.approx((0.9 + 0.9 + 0.4 + 3 * 0.2) / 6) and spatial.extra["regions"] == 6
    assert spatial.extra["share_of_yes"] == pytest.approx(2 / 6)
    assert table["region-vqa-2 spatial", "real images"].value == pytest.approx(2 * (0.9 + 0.9 + 0.4) / 6)
    assert table["region-vqa-2 region", "generated"].value == pytest.approx(spatial.value)  # equal answers to a region
    assert table["region-vqa-2 texture", "generated"].extra["regions"] == 2
    assert ("region-vqa-2 spatial", "captions of other regions") in table
    wrong = [question.caption for question in judge.asked if question.caption not in WORDS and question.key == "s0"]
    assert len(wrong) == 2 and not {"red", "blue"} & {word for text in wrong for word in text.split()}
    assert table["region-vqa-2 spatial", "misleading phrases"].extra["regions"] == 4
    assert spatial.extra["captions_unread"] == 0 and spatial.extra["unanswered"] == 0
    assert sum(question.wants == "attributes" for question in judge.asked) == 3  # each caption once


def of_region(index: int, *answers: float | None) -> list[tuple[Question, dict | None]]:
    kinds = ("spatial", "colour", "texture", "shape")
    return [
        (Question("s", kind, "c", "?", region=(0, index)), None if yes is None else {"yes": yes})
        for kind, yes in zip(kinds, answers, strict=False)
    ]


def test_a_region_that_is_wrong_in_one_thing_is_wrong():
    answered = [*of_region(0, 0.9, 0.9, 0.0), *of_region(1, 0.5, 0.5), *of_region(2, 0.9, None)]
    results = {result.name: result for result in soft_scores(answered, "generated")}
    expected = ((0.9 * 0.9 * 1e-4) ** (1 / 3) + 0.5) / 2
    assert results["region-vqa-2 region"].value == pytest.approx(expected)
    assert results["region-vqa-2 colour"].value == pytest.approx(0.7)
    assert results["region-vqa-2 colour"].extra["unanswered"] == 1
    assert geometric_mean([0.2, 0.8]) == pytest.approx(0.4)


def test_the_published_mode_counts_attributes_of_absent_subjects_as_wrong(tmp_path: Path):
    answered = [*of_region(0, 0.6, 0.9, 0.4, 1.0), *of_region(1, 0.4, 0.9, 0.9, 0.9), *of_region(2, None, 1.0)]
    found = {result.name: result for result in published_scores(answered, "generated")}
    assert {name: result.value for name, result in found.items()} == {
        "layoutsam-eval spatial": 0.5, "layoutsam-eval colour": 0.5,
        "layoutsam-eval texture": 0.0, "layoutsam-eval shape": 0.5,
    }  # fmt: skip
    asked: list[Question] = []

    class SaysYes:
        name = "says yes"

        def answer(self, question: Question) -> dict:
            asked.append(question)
            return {"yes": 1.0, "by": "text"}

    item, answers = Item("s", IMAGE, layout=layout()), Answers(tmp_path / "answers.jsonl", SaysYes())
    results = region_vqa(lambda: [item], lambda: [], answers, mode="published")
    assert {result.source for result in results} == {
        *("generated", "captions of other regions", "misleading phrases", "drawn figures")
    }
    first = [question for question in asked if "a red striped wall" in question.text][:4]
    assert [question.kind for question in first] == list(PUBLISHED) and first[0].images[0].shape == (40, 30, 3)
    assert first[1].text == (
        'Is the subject in "a red striped wall" in the image consistent with the color described in the detailed '
        'description: "a red striped wall"? Strictly answer with "Yes" or "No", without any irrelevant words. If the '
        'color is not mentioned in the detailed description, the answer is "Yes".'
    )


def test_anchors_tell_a_judge_that_knows_from_one_that_says_yes():
    known = list(anchors(4))
    assert len(known) == 16 and sum(right for _, right in known) == 8
    assert [question.id for question, _ in known] == [question.id for question, _ in anchors(4)]
    texts = {question.text for question, right in known if right} & {q.text for q, right in known if not right}
    assert not texts and all(len(question.images) == 1 for question, _ in known)
    (knows,) = anchored((question, right, {"yes": 0.8 if right else 0.3}) for question, right in known)
    assert (knows.name, knows.value, knows.extra["area_under_curve"]) == (ANCHORS, 1.0, 1.0)
    (yes,) = anchored((question, right, {"yes": 0.9}) for question, right in known)
    assert yes.value == 0.5 and yes.extra["area_under_curve"] == 0.5 and yes.extra["p_yes_where_wrong"] == 0.9
    assert anchored((question, right, None) for question, right in known) == []
    assert area_under_curve([0.9, 0.2], [0.5]) == 0.5 and area_under_curve([], [0.5]) is None
