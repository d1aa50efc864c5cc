"""A dead engine is started again, every request is answered once, and the one that kills it is found."""

from __future__ import annotations

import gc
import os
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from threading import Thread

import pytest
from kept_engines import SMALL

from prefdata.engines.protocol import Completion, Rejection, Request, Sampling
from prefdata.engines.restart import with_restart
from prefdata.errors import EngineError
from prefdata.models.files import ModelFiles, identify
from prefdata.specs import EngineSpec

SAMPLING = Sampling(1.0, 1.0, 0, 40)


class Frail:
    """An engine that answers four requests at a time, last ones first, and dies where `dies(request, its life)` says.

    `lives` counts the engines that were opened, `asked` how often each request reached one.
    """

    lives = 0
    name = "frail"
    context_length = None
    renders = True
    computed = {"dtype": "float32", "device": "cpu"}  # noqa: RUF012
    template_hash = ""
    notes = ("frail",)
    width = 4

    def __init__(self, dies, asked: Counter[str]) -> None:
        Frail.lives += 1
        self.life, self.dies, self.asked, self.open = Frail.lives, dies, asked, True
        self.model, self.versions = ModelFiles("m", "", None, {}), {}

    def render(self, messages, tools=None, holds=()) -> tuple[int, ...]:
        return (1,)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion | Rejection]:
        stream = iter(requests)
        while batch := list(islice(stream, self.width)):
            for request in reversed(batch):
                assert self.open
                self.asked[request.key] += 1
                if self.dies(request, self.life):
                    self.open = False
                    raise EngineError(f"it fell over {request.key}")
                yield Completion(request.key, "a", (1,), "stop", -1.0)

    def close(self) -> None:
        self.open = False


@pytest.fixture
def frail():
    """`frail(dies)`: a generator that is opened again when it dies, and how often each request reached an engine."""
    Frail.lives = 0

    def make(dies):
        asked: Counter[str] = Counter()
        return with_restart(lambda: Frail(dies, asked)), asked

    return make


def requests(count: int, a_prompt: int = 1) -> list[Request]:
    return [Request(f"{i}", (1, 4 + i // a_prompt), i, SAMPLING) for i in range(count)]


def answers(generator, asked: Iterable[Request]) -> dict[str, Completion | Rejection]:
    found = list(generator.generate(iter(asked)))
    assert len({answer.key for answer in found}) == len(found)
    return {answer.key: answer for answer in found}


def test_an_engine_that_lives_is_left_alone(frail):
    generator, asked = frail(lambda request, life: False)
    assert set(answers(generator, requests(10))) == set(map(str, range(10)))
    assert (Frail.lives, generator.notes, set(asked.values())) == (1, ("frail",), {1})


def test_every_request_is_answered_once_through_deaths(frail):
    deaths = {(1, "6"), (2, "17"), (3, "30"), (4, "39")}
    generator, asked = frail(lambda request, life: (life, request.key) in deaths)
    found = answers(generator, requests(40))
    assert set(found) == set(map(str, range(40)))
    assert all(isinstance(answer, Completion) for answer in found.values())
    assert Frail.lives == 5
    assert asked["6"] == 2
    assert generator.notes == ("frail", "The engine died 4 times and was started again (last: it fell over 39)")


def test_the_request_that_kills_the_engine_is_rejected_and_the_job_goes_on(frail):
    generator, asked = frail(lambda request, life: request.key == "5")
    found = answers(generator, requests(40))
    assert set(found) == set(map(str, range(40)))
    assert found.pop("5") == Rejection("5", "rejected", "the engine died on it three times: it fell over 5")
    assert all(isinstance(answer, Completion) for answer in found.values())
    assert (Frail.lives, asked["5"]) == (4, 3)


def test_all_the_candidates_of_a_bad_prompt_are_rejected(frail):
    """Sixteen in a row kill the engine, at the end of the job too: it is the prompt, since others were answered."""
    for bad in (3, 0, 9):
        Frail.lives = 0
        generator, _ = frail(lambda request, life, bad=bad: request.prompt_ids == (1, 4 + bad))
        found = answers(generator, requests(160, a_prompt=16))
        rejected = {key for key, answer in found.items() if isinstance(answer, Rejection)}
        assert len(found) == 160
        assert rejected == {str(i) for i in range(16 * bad, 16 * bad + 16)}


def test_an_engine_that_answers_nothing_is_given_up(frail):
    generator, _ = frail(lambda request, life: True)
    with pytest.raises(EngineError, match="it fell over"):
        answers(generator, requests(40))
    assert Frail.lives == 1 + 5  # twice with all that was in flight, then on three prompts alone


def test_one_request_alone_does_not_condemn_itself(frail):
    generator, asked = frail(lambda request, life: True)
    with pytest.raises(EngineError, match="it fell over 0"):
        answers(generator, requests(1))
    assert asked["0"] == 3


def test_an_engine_that_stops_working_midway_condemns_nobody(frail):
    generator, _ = frail(lambda request, life: life > 1 or request.key == "20")
    found = []
    with pytest.raises(EngineError):
        found.extend(generator.generate(iter(requests(40))))
    assert not any(isinstance(answer, Rejection) for answer in found)


def test_an_engine_that_dies_of_nothing_is_given_up(frail):
    class Empty(Frail):
        def generate(self, requests):
            raise EngineError("no air")
            yield

    generator = with_restart(lambda: Empty(None, Counter()))
    with pytest.raises(EngineError, match="no air"):
        answers(generator, requests(3))
    assert Frail.lives == 4


def test_an_engine_that_cannot_be_opened_says_so():
    def fail():
        raise EngineError("no GPU")

    with pytest.raises(EngineError, match="no GPU"):
        with_restart(fail)


def test_other_errors_pass(frail):
    def broken() -> Iterator[Request]:
        yield requests(1)[0]
        raise KeyboardInterrupt

    generator, _ = frail(lambda request, life: False)
    with pytest.raises(KeyboardInterrupt):
        list(generator.generate(broken()))
    assert Frail.lives == 1


def test_a_server_is_not_ours_to_start_again():
    class Remote(Frail):
        name = "openai"

    generator = Remote(None, Counter())
    assert with_restart(lambda: generator) is generator


@pytest.mark.vllm
def test_vllm_killed_in_the_middle(tiny_policy):
    """SIGKILL to the process that computes, twice: vLLM's own client would wait for its answers for ever."""
    from prefdata.engines.vllm.generator import VllmGenerator

    opened = []
    spec = EngineSpec(max_num_seqs=8, engine_option=SMALL)

    def start() -> VllmGenerator:
        opened.append(VllmGenerator(identify(str(tiny_policy), "causal-lm"), spec))
        return opened[-1]

    generator = with_restart(start)

    def asked() -> Iterator[Request]:
        for i in range(400):
            if i in (100, 300):
                (process,) = opened[-1]._running.engine.engine_core.resources.engine_manager.processes
                os.kill(process.pid, signal.SIGKILL)
            yield Request(str(i), (1, 4 + i % 200), i, Sampling(1.0, 1.0, 0, 40))

    found = answers(generator, asked())
    assert set(found) == set(map(str, range(400)))
    assert all(isinstance(answer, Completion) for answer in found.values())
    assert len(opened) == 3
    collecting = Thread(target=gc.collect, daemon=True)
    collecting.start()
    collecting.join(300)
    assert not collecting.is_alive()  # what is left of the dead ones blocks nobody
    assert "died 2 times" in generator.notes[-1]
    again = answers(generator, [Request(str(i), (1, 4 + i % 200), i, Sampling(1.0, 1.0, 0, 40)) for i in range(400)])
    generator.close()
    assert sum(again[key].token_ids != found[key].token_ids for key in found) <= 1  # the same draws as without a death
