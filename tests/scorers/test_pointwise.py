"""P(Good) is made of the two labels' own ln p, one row alone, whatever stands beside an answer."""

from __future__ import annotations

import math
import random

import pytest
import torch

from prefdata import ids
from prefdata.models.files import identify
from prefdata.scorers.causal_lm.pointwise import LabelOdds, Pointwise
from prefdata.scorers.judge.rubrics import Question
from prefdata.scorers.protocol import ScoringItem

PROMPT = ({"role": "user", "content": "Hi."},)
ANSWERS = ["", "yes", "no, never", "é 🎬", "long " * 8, "{prompt}"]


def question(**changes) -> Question:
    values = {"kind": "pointwise-labels", "text": "{prompt} {response} ok?", "labels": ["Good", "Bad"]}
    return Question.parse({**values, **changes})


def items(answers: list[str], **more) -> list[ScoringItem]:
    return [ScoringItem(str(i), PROMPT, text, False, **more) for i, text in enumerate(answers)]


def logp(folder, before: str, label: str) -> float:
    """The label's ln p after a text, from the full logits of one row alone, in float64."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt, answer = (tokenizer.encode(text, add_special_tokens=False) for text in (before, label))
    with torch.inference_mode():
        logps = net(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    return sum(float(logps[len(prompt) + i - 1, token]) for i, token in enumerate(answer))


def open_model(folder, asked: Question, **more) -> Pointwise:
    return Pointwise(identify(str(folder), "causal-lm"), asked, device="cpu", **more)


@pytest.mark.parametrize("budget", [1, 150, 100_000])
@pytest.mark.parametrize("labels", [("Good", "Bad"), ("+", "-")])
def test_the_score_is_the_good_labels_share(tiny_policy, labels, budget):
    scorer = open_model(tiny_policy, question(labels=labels), batch_tokens=budget)
    found = {s.key: s for s in scorer.score(random.Random(0).sample(items(ANSWERS), len(ANSWERS)))}
    for i, answer in enumerate(ANSWERS):
        text = f"<bos>[user] Hi. {answer} ok?<eot>[assistant] "
        good, bad = (logp(tiny_policy, text, label) for label in labels)
        one = found[str(i)]
        assert one.score == pytest.approx(math.exp(good) / (math.exp(good) + math.exp(bad)), abs=1e-5)
        assert one.details["logps"] == {
            labels[0]: pytest.approx(good, abs=1e-5),
            labels[1]: pytest.approx(bad, abs=1e-5),
        }
        assert one.text_hash == ids.text_hash(text)


def test_the_labels_turned_round_give_the_rest_to_one(tiny_policy):
    one, other = (
        {s.key: s.score for s in open_model(tiny_policy, question(labels=labels)).score(items(ANSWERS))}
        for labels in (("Good", "Bad"), ("Bad", "Good"))
    )
    assert all(one[key] + other[key] == pytest.approx(1, abs=1e-12) for key in one)
    assert len({round(score, 9) for score in one.values()}) > 1


def test_plain_text_goes_on_without_the_chat_template(tiny_policy):
    asked = question(text="[CONTEXT] {prompt} [SUMMARY] {response}", labels=[" Good", " Bad"], plain=True)
    (one,) = open_model(tiny_policy, asked).score(items(["yes"]))
    text = "<bos>[CONTEXT] Hi. [SUMMARY] yes"
    assert one.details["log_odds"] == pytest.approx(
        logp(tiny_policy, text, " Good") - logp(tiny_policy, text, " Bad"), abs=1e-5
    )


def test_a_share_that_has_lost_its_digits_keeps_its_log_odds():
    sure = LabelOdds("k", "h", (-1.0, -900.0))
    assert (sure.share, sure.log_odds) == (1.0, 899.0)
    assert LabelOdds("k", "h", (-900.0, -1.0)).share == 0.0
    assert math.isnan(LabelOdds("k", "h", (-math.inf, -math.inf)).share)


def test_what_cannot_be_scored_has_a_reason(tiny_policy):
    asked = question(text="{prompt} {response} {reference}")
    odd = ScoringItem("none", PROMPT, "y", False)
    found = {s.key: s for s in open_model(tiny_policy, asked).score([odd, *items(["x" * 128, "yes"], reference="r")])}
    assert (found["none"].score, found["none"].reason) == (None, "no_reference")
    assert (found["0"].score, found["0"].reason) == (None, "too_long")
    assert found["1"].score is not None
    critic = question(system="Be strict.", text="{prompt} {response}")
    model = open_model(tiny_policy, critic)
    model.model.chat.template = None
    (refused,) = model.score(items(["yes"]))
    assert (refused.score, refused.reason) == (None, "refused_by_template")


def test_what_is_no_number_is_no_score(tiny_policy):
    scorer = open_model(tiny_policy, question())
    scorer.model._head.lm_head.weight.data.fill_(float("nan"))
    (one,) = scorer.score(items(["yes"]))
    assert (one.score, one.reason) == (None, "nan")
