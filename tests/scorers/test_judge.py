"""A judge's verdict is what it said, or nothing: asked again, then null with a reason.

Most tests use `Scripted`, a fake engine that says what the test wants: they are about asking and reading. Two run the
real vLLM under the verdict's JSON schema.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefdata.chat.template import TemplateRefusal
from prefdata.engines.protocol import Completion, Rejection, Request
from prefdata.errors import UsageError
from prefdata.models.files import ModelFiles, identify
from prefdata.scorers.judge.judge import RETRY_TEMPERATURE, AbsoluteJudge, PairwiseJudge
from prefdata.scorers.judge.rubrics import Rubric, load_rubric
from prefdata.scorers.protocol import Comparison, ScoringItem
from prefdata.specs import EngineSpec

ABSOLUTE = Rubric.parse(
    {
        "kind": "absolute",
        "text": "{prompt} -> {response}",
        "aspects": [{"name": "useful", "text": "Is it?", "weight": 3.0}, {"name": "true", "text": "Is it?"}],
    }
)
PAIRWISE = Rubric.parse({"kind": "pairwise", "text": "{prompt}: {first} or {second}?", "strengths": ["bit", "lot"]})
PROMPT = ({"role": "user", "content": "Hi"},)


class Scripted:
    """A fake engine: `say(text of the last message, which time it is asked)` is the reply, or a Rejection's status."""

    name, renders, template_hash, context_length = "scripted", True, "", None
    model, versions, notes = ModelFiles("the-judge", "", None, {}), {"scripted": "1"}, ()

    computed: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, say: Callable[[str, int], str], renders: bool = True, ahead: int = 3) -> None:
        self.say, self.renders, self.ahead = say, renders, ahead
        self.asked: list[Request] = []
        self.times: Counter[str] = Counter()
        self.closed = False

    def render(self, messages, tools=None, holds=()) -> tuple[int, ...]:
        if messages[-1]["content"].startswith("refuse"):
            raise TemplateRefusal("the template refuses it")
        return tuple(messages[-1]["content"].encode())

    def generate(self, requests) -> Iterator[Completion | Rejection]:
        """Pulls several requests before it answers the last of them, as real engines do."""
        stream, held, more = iter(requests), [], True
        while more or held:
            while more and len(held) < self.ahead:
                request = next(stream, None)
                more = request is not None
                held += [request] if request else []
            if held:
                yield self._answer(held.pop())

    def _answer(self, request: Request) -> Completion | Rejection:
        assert bool(request.prompt_ids) == self.renders
        self.asked.append(request)
        text = request.messages[-1]["content"]
        self.times[text] += 1
        said = self.say(text, self.times[text])
        if said in ("prompt_too_long", "refused", "rejected"):
            return Rejection(request.key, said, "why")
        return Completion(request.key, said, None, "stop", None)

    def close(self) -> None:
        self.closed = True


def items(*answers: str) -> list[ScoringItem]:
    return [ScoringItem(f"k{i}", PROMPT, text, False) for i, text in enumerate(answers)]


def rate(useful: object, true: object = 5, **more: object) -> str:
    return json.dumps({"rationale": "so", "useful": useful, "true": true, **more})


def scored(say, *answers: str, **settings):
    found = list(AbsoluteJudge(Scripted(say), ABSOLUTE, **settings).score(items(*answers)))
    assert sorted(s.key for s in found) == sorted(item.key for item in items(*answers))
    return {s.key: s for s in found}


def test_the_score_is_the_weighted_mean_of_the_aspects() -> None:
    """(3 * 8 + 1 * 4) / 4 = 7."""
    (one,) = scored(lambda text, time: rate(8, 4), "a").values()
    assert (one.score, one.reason) == (7.0, None)
    assert one.details == {"aspects": {"useful": 8, "true": 4}, "rationale": "so", "tries": 1}
    assert one.text_hash is not None


def test_every_answer_gets_its_own_verdict_whatever_the_order_of_replies() -> None:
    found = scored(lambda text, time: rate(len(text.rpartition("-> ")[2]), 1), *("x" * n for n in range(1, 11)))
    assert [found[f"k{n}"].score for n in range(10)] == [(3 * (n + 1) + 1) / 4 for n in range(10)]


def test_the_judge_is_asked_at_temperature_0_under_the_schema_and_retries_otherwise() -> None:
    engine = Scripted(lambda text, time: rate(8) if time == 3 else "I would say eight.")
    (one,) = AbsoluteJudge(engine, ABSOLUTE, max_tokens=77).score(items("a"))
    assert (one.score, one.details["tries"]) == (7.25, 3)
    assert [request.sampling.temperature for request in engine.asked] == [0.0, RETRY_TEMPERATURE, RETRY_TEMPERATURE]
    assert len({request.seed for request in engine.asked}) == 3
    assert {request.sampling.max_tokens for request in engine.asked} == {77}
    assert {request.sampling.json_schema for request in engine.asked} == {ABSOLUTE.verdict_schema()}


def test_seeds_are_of_what_is_judged_and_not_of_its_place() -> None:
    def seeds(*answers: str) -> dict[str, int]:
        engine = Scripted(lambda text, time: "")
        list(AbsoluteJudge(engine, ABSOLUTE, tries=2).score(items(*answers)))
        return {f"{r.messages[-1]['content']} {r.sampling.temperature}": r.seed for r in engine.asked}

    assert seeds("a", "b", "c") == seeds("c", "a", "b")


@pytest.mark.parametrize("said", ["", "null", "10", "eight", rate("10"), rate("high"), rate(11), rate(-1), rate(None)])
def test_a_parse_failure_is_no_score_and_neither_minus_one_nor_ten(said: str) -> None:
    """open-instruct took unparsable ratings for -1 and averaged them in (PEERS.md 1b)."""
    (one,) = scored(lambda text, time: said, "a", tries=2).values()
    assert (one.score, one.reason) == (None, "unparsable")
    assert one.details == {"reply": said, "tries": 2}


def test_a_verdict_of_none_does_not_crash_the_rest() -> None:
    """open-instruct indexed with a None verdict and died (PEERS.md 1b)."""
    found = scored(lambda text, time: "null" if "bad" in text else rate(8), "good", "bad", "fine")
    assert [found[f"k{n}"].score for n in range(3)] == [7.25, None, 7.25]
    engine = Scripted(lambda text, time: json.dumps({"verdict": None, "strength": None}))
    (verdict,) = PairwiseJudge(engine, PAIRWISE).compare([Comparison("m", PROMPT, "a", "b")])
    assert (verdict.probability, verdict.verdict) == (None, "unparsable")
    assert verdict.rationale == '{"verdict": null, "strength": null}'


def test_many_that_cannot_be_read_are_all_asked_so_often_and_no_more() -> None:
    engine = Scripted(lambda text, time: rate(3) if time == int(text[-1]) else "?", ahead=4)
    answers = [f"{i} {i % 5 + 1}" for i in range(40)]
    found = {s.key: s for s in AbsoluteJudge(engine, ABSOLUTE, tries=3).score(items(*answers))}
    assert len(found) == 40
    assert {key: s.reason for key, s in found.items()} == {
        f"k{i}": None if i % 5 < 3 else "unparsable" for i in range(40)
    }
    assert set(engine.times.values()) == {1, 2, 3}


def test_items_are_pulled_as_they_are_needed() -> None:
    pulled = []

    def stream() -> Iterator[ScoringItem]:
        for item in items(*map(str, range(50))):
            pulled.append(item.key)
            yield item

    judged = AbsoluteJudge(Scripted(lambda text, time: rate(5)), ABSOLUTE).score(stream())
    next(judged)
    assert len(pulled) <= 4


@pytest.mark.parametrize(
    ("status", "reason", "verdict"),
    [("prompt_too_long", "too_long", "too_long"), ("refused", "refused", "refused"), ("rejected", "error", "error")],
)
def test_what_the_engine_turns_down_is_not_asked_again(status: str, reason: str, verdict: str) -> None:
    engine = Scripted(lambda text, time: status)
    (one,) = AbsoluteJudge(engine, ABSOLUTE).score(items("a"))
    assert (one.score, one.reason, one.details) == (None, reason, {"reply": "why", "tries": 1})
    (other,) = PairwiseJudge(engine, PAIRWISE).compare([Comparison("m", PROMPT, "a", "b")])
    assert (other.probability, other.verdict, other.rationale) == (None, verdict, "why")
    assert len(engine.asked) == 2


def test_what_the_template_does_not_take_has_a_reason() -> None:
    rubric = Rubric.parse({**ABSOLUTE.model_dump(), "text": "{response} {prompt}"})
    found = {s.key: s for s in AbsoluteJudge(Scripted(lambda *_: rate(5)), rubric).score(items("refuse", "b"))}
    assert (found["k0"].score, found["k0"].reason) == (None, "refused_by_template")
    assert found["k1"].score == 5.0


def test_a_rubric_with_a_reference_needs_one() -> None:
    rubric = Rubric.parse({**ABSOLUTE.model_dump(), "text": "{prompt} {response} ({reference})"})
    asked = [ScoringItem("with", PROMPT, "a", False, reference="gold"), ScoringItem("without", PROMPT, "a", False)]
    engine = Scripted(lambda *_: rate(5))
    found = {s.key: s for s in AbsoluteJudge(engine, rubric).score(asked)}
    assert (found["with"].score, found["without"].score, found["without"].reason) == (5.0, None, "no_reference")
    assert engine.asked[0].messages[-1]["content"] == "Hi a (gold)"


def test_a_server_that_renders_by_itself_is_sent_the_messages() -> None:
    engine = Scripted(lambda *_: rate(5), renders=False)
    (one,) = AbsoluteJudge(engine, load_rubric("helpful")).score(items("a"))
    assert one.reason == "unparsable"  # of another rubric: its aspects are not these
    assert [turn["role"] for turn in engine.asked[0].messages] == ["user", "assistant", "user"]


def choose(verdict: str, strength: str = "lot") -> str:
    return json.dumps({"rationale": "so", "verdict": verdict, "strength": strength})


def compared(say, *pairs: tuple[str, str]):
    matches = [Comparison(f"m{i}", PROMPT, *pair) for i, pair in enumerate(pairs)]
    return {v.key: v for v in PairwiseJudge(Scripted(say), PAIRWISE).compare(matches)}


def test_the_verdict_decides_what_is_better() -> None:
    """open-instruct's judge never changed which answer was chosen (PEERS.md 1b): its label was the order of a list."""

    def the_longer(text: str, time: int) -> str:
        first, second = text.removeprefix("Hi: ").removesuffix("?").split(" or ")
        return choose("A" if len(first) > len(second) else "B" if len(second) > len(first) else "tie")

    found = compared(the_longer, ("long", "s"), ("s", "long"), ("same", "size"))
    assert [(v.verdict, v.probability, v.strength) for v in found.values()] in (
        [("tie", 0.5, None), ("second", 0.0, "lot"), ("first", 1.0, "lot")],
        [("first", 1.0, "lot"), ("second", 0.0, "lot"), ("tie", 0.5, None)],
    )
    assert (found["m0"].verdict, found["m1"].verdict, found["m2"].verdict) == ("first", "second", "tie")
    assert found["m0"].rationale == "so"


def test_position_bias_shows_as_disagreement_between_the_orders() -> None:
    """A judge that always says A has the answer shown first win in both orders: never the same answer twice."""
    found = compared(lambda text, time: choose("A"), ("x", "y"), ("y", "x"))
    assert [found[key].verdict for key in ("m0", "m1")] == ["first", "first"]


@pytest.mark.parametrize("said", ["A", '{"verdict": "C", "strength": "lot"}', choose("A") + choose("B"), choose("a")])
def test_a_verdict_that_is_none_is_not_a_tie(said: str) -> None:
    (one,) = compared(lambda text, time: said, ("x", "y")).values()
    assert (one.probability, one.verdict, one.strength, one.rationale) == (None, "unparsable", None, said)


def test_a_rubric_of_the_other_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="needs one of absolute"):
        AbsoluteJudge(Scripted(lambda *_: ""), PAIRWISE)
    with pytest.raises(UsageError, match="needs one of pairwise"):
        PairwiseJudge(Scripted(lambda *_: ""), ABSOLUTE)


def test_names_and_closing() -> None:
    engine = Scripted(lambda *_: "")
    assert PairwiseJudge(engine, PAIRWISE).annotator == "the-judge"
    judge = PairwiseJudge(engine, PAIRWISE, annotator="gpt")
    assert (judge.annotator, judge.versions, judge.notes) == ("gpt", {"scripted": "1"}, ())
    judge.close()
    assert engine.closed


def test_transformers_says_that_it_enforces_no_schema() -> None:
    engine = Scripted(lambda *_: "")
    engine.name = "transformers"
    assert "enforces no JSON schema" in AbsoluteJudge(engine, ABSOLUTE).notes[0]


@pytest.fixture(scope="module")
def vllm_policy():
    from prefdata.engines.vllm.generator import VllmGenerator

    folder = Path(__file__).parents[2] / "sample_data" / "policy"
    engine = VllmGenerator(identify(str(folder), "causal-lm"), EngineSpec(max_num_seqs=8))
    yield engine
    engine.close()


@pytest.mark.vllm
def test_under_the_schema_a_model_that_cannot_judge_gives_ratings_that_can_be_read(vllm_policy) -> None:
    """The bundled policy only writes film reviews: that its replies are verdicts is the schema's doing."""
    rubric = Rubric.parse({**ABSOLUTE.model_dump(), "rationale_chars": 40})
    found = list(AbsoluteJudge(vllm_policy, rubric, max_tokens=120, tries=1).score(items("a", "b", "c", "d")))
    assert [s.reason for s in found] == [None] * 4
    assert all(1 <= s.score <= 10 and len(s.details["rationale"]) <= 40 for s in found)


@pytest.mark.vllm
def test_under_the_schema_a_model_that_cannot_judge_gives_verdicts_that_can_be_read(vllm_policy) -> None:
    rubric = Rubric.parse({**PAIRWISE.model_dump(), "rationale_chars": 40})
    matches = [Comparison(f"m{i}", PROMPT, f"a{i}", "b") for i in range(4)]
    found = list(PairwiseJudge(vllm_policy, rubric, max_tokens=120, tries=1).compare(matches))
    assert {v.verdict for v in found} <= {"first", "second", "tie"}
    assert all(v.probability is not None for v in found)
