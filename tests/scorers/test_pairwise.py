"""P(A beats B) is made of the two labels' own ln p, and belongs to the order in which the answers are shown."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefdata.models.files import identify
from prefdata.scorers.causal_lm.pairwise import Pairwise
from prefdata.scorers.judge.rubrics import Question
from prefdata.scorers.protocol import Comparison

PROMPT = ({"role": "user", "content": "Hi."},)
PAIRS = [("yes", "no"), ("no", "yes"), ("same", "same"), ("é 🎬", "long " * 6), ("{second}", "{first}")]
QUESTION = {"kind": "pairwise-labels", "text": "{prompt} 1:{first} 2:{second} which?", "labels": ["A", "B"]}


def matches(pairs) -> list[Comparison]:
    return [Comparison(str(i), PROMPT, *pair) for i, pair in enumerate(pairs)]


def next_token(folder, before: str, labels: str) -> list[float]:
    """The ln p of labels of one token after a text, from one row alone, in float64."""
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        row = torch.tensor([tokenizer.encode(before, add_special_tokens=False)])
        logps = net(row).logits[0, -1].double().log_softmax(-1)
    return [float(logps[token]) for token in tokenizer.encode(labels, add_special_tokens=False)]


def open_model(folder, **more) -> Pairwise:
    return Pairwise(identify(str(folder), "causal-lm"), Question.parse(QUESTION), device="cpu", **more)


@pytest.mark.parametrize("budget", [1, 150, 100_000])
def test_the_probability_is_the_first_labels_share(tiny_policy, budget):
    found = {v.key: v for v in open_model(tiny_policy, batch_tokens=budget).compare(matches(PAIRS))}
    for i, (first, second) in enumerate(PAIRS):
        text = f"<bos>[user] Hi. 1:{first} 2:{second} which?<eot>[assistant] "
        a, b = next_token(tiny_policy, text, "AB")
        assert found[str(i)].probability == pytest.approx(math.exp(a) / (math.exp(a) + math.exp(b)), abs=1e-5)
        assert found[str(i)].verdict == ("first" if a > b else "second")


def test_position_bias_is_seen_and_not_mended_here(tiny_policy):
    """A judge that always likes one place says so of both orders: agreement is for whoever asks in both."""
    model = open_model(tiny_policy)
    (b,) = model.model.chat.tokenizer.encode("B", add_special_tokens=False)
    favour = torch.nn.functional.one_hot(torch.tensor(b), 260) * 50.0
    model.model._head.lm_head.register_forward_hook(lambda module, inputs, logits: logits + favour)
    found = {v.key: v for v in model.compare(matches(PAIRS[:2]))}
    assert [found[key].verdict for key in "01"] == ["second", "second"]
    assert all(verdict.probability < 0.01 for verdict in found.values())


def test_the_verdicts_go_under_a_name(tiny_policy):
    assert open_model(tiny_policy, annotator="ranker").annotator == "ranker"
    assert open_model(tiny_policy).annotator == str(tiny_policy)


def test_what_cannot_be_compared_has_no_probability(tiny_policy):
    odd = Comparison("odd", PROMPT, "y", "n")
    found = {v.key: v for v in open_model(tiny_policy).compare([*matches([("x" * 128, "y"), ("y", "n")]), odd])}
    assert (found["0"].probability, found["0"].verdict) == (None, "too_long")
    assert found["1"].probability is not None
    assert found["odd"] == found["1"].__class__(
        "odd", found["1"].probability, found["1"].verdict, None, found["1"].rationale
    )
    broken = open_model(tiny_policy)
    broken.model._head.lm_head.weight.data.fill_(float("nan"))
    (one,) = broken.compare(matches([("y", "n")]))
    assert (one.probability, one.verdict) == (None, "error")


def test_verdicts_come_as_they_are_known(tiny_policy, monkeypatch):
    """A stop in the middle of a window loses what is being computed, and not the window."""
    model = open_model(tiny_policy, batch_tokens=1)
    computed = []
    real = model.model._batch
    monkeypatch.setattr(model.model, "_batch", lambda rows: computed.append(len(rows)) or real(rows))
    verdicts = model.compare(matches(PAIRS))
    next(verdicts)
    assert sum(computed) == 1
    assert len(list(verdicts)) == len(PAIRS) - 1
