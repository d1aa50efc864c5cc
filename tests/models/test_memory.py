"""Memory that is full: batches are halved, nothing is lost or computed twice over, and the numbers stay."""

from __future__ import annotations

import pytest
import torch

from prefdata.engines.hf.generator import TransformersGenerator
from prefdata.engines.protocol import Request, Sampling
from prefdata.errors import EngineError
from prefdata.models.files import identify
from prefdata.models.memory import TokenBudget
from prefdata.scorers.causal_lm.likelihood import MeanLogprob
from prefdata.scorers.classifier.hf import RewardModel
from prefdata.scorers.protocol import ScoringItem
from prefdata.train.specs import DpoSpec, RmSpec
from prefdata.train.train import train_dpo, train_rm

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB."


class SmallMemory:
    """A GPU that holds so many positions at a time: every embedding of more of them raises torch's own error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int, error: Exception) -> None:
        self.limit, self.refused = limit, 0
        embed = torch.nn.Embedding.forward

        def forward(module: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
            if ids.numel() > self.limit:
                self.refused += 1
                raise error
            return embed(module, ids)

        monkeypatch.setattr(torch.nn.Embedding, "forward", forward)


@pytest.fixture(
    params=[torch.OutOfMemoryError(MESSAGE), RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()],
    ids=["cuda", "cpu", "python"],
)
def small_memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    return lambda limit: SmallMemory(monkeypatch, limit, request.param)


PROMPT = ({"role": "user", "content": "Say something."},)
ITEMS = [ScoringItem(f"{n}", ({"role": "user", "content": f"Say {n % 3}."},), f"answer {n}", False) for n in range(24)]


def scores(scorer) -> dict[str, float]:
    found = list(scorer.score(iter(ITEMS)))
    assert sorted(one.key for one in found) == sorted(item.key for item in ITEMS)
    return {one.key: one.score for one in found}


@pytest.mark.parametrize("share", [True, False])
def test_a_reward_model_scores_in_smaller_batches(share, tiny_reward_model, small_memory, caplog):
    files = identify(str(tiny_reward_model), "reward-model")
    expected = scores(RewardModel(files, device="cpu", share_prompts=share))
    memory = small_memory(150)
    model = RewardModel(files, device="cpu", batch_tokens=4096, share_prompts=share)
    assert scores(model) == pytest.approx(expected, abs=1e-5)
    assert memory.refused
    assert model.budget.tokens < 4096
    (warned,) = (one for one in caplog.messages if "memory" in one)
    assert "--batch-tokens 2048" in warned


def test_a_likelihood_is_computed_in_smaller_batches(tiny_policy, small_memory):
    files = identify(str(tiny_policy), "causal-lm")
    expected = scores(MeanLogprob(files, device="cpu"))
    memory = small_memory(150)
    assert scores(MeanLogprob(files, device="cpu", batch_tokens=4096)) == pytest.approx(expected, abs=1e-5)
    assert memory.refused


def test_candidates_are_sampled_in_smaller_batches(tiny_policy, small_memory):
    def sampled() -> dict[str, tuple[int, ...]]:
        model = TransformersGenerator(identify(str(tiny_policy), "causal-lm"), device="cpu")
        ids, how = model.render(PROMPT), Sampling(1.0, 1.0, 0, 8)
        asked = [Request(f"{n}", ids[: -1 - n % 3], n, how) for n in range(24)]
        return {one.key: one.token_ids for one in model.generate(asked)}

    expected = sampled()
    memory = small_memory(90)
    assert sampled() == expected
    assert memory.refused


@pytest.mark.parametrize("command", ["dpo", "rm"])
def test_a_training_step_is_redone_whole_in_smaller_batches(command, tiny_policy, write, tmp_path, small_memory):
    """Half of a step's gradients are there when memory ends: kept, they would count twice."""
    pairs = [{"prompt": "Say it.", "chosen": f"{n} " * n, "rejected": f"not {n}"} for n in range(1, 9)]
    settings = {"model": str(tiny_policy), "batch_size": 8, "epochs": 2, "batch_layout": "padded", "lr": 1e-3}

    def trained(name: str) -> list[float]:
        train, spec = (train_dpo, DpoSpec) if command == "dpo" else (train_rm, RmSpec)
        done = train(write(*pairs), spec(**settings, micro_tokens=100_000), tmp_path / name)
        lines = (done.path / "metrics.jsonl").read_text().splitlines()
        return [float(line.split('"grad_norm": ')[1].split(",")[0].rstrip("}")) for line in lines]

    expected = trained("whole")
    memory = small_memory(200)
    assert trained("halved") == pytest.approx(expected, rel=1e-3)
    assert memory.refused


def test_what_never_fits_names_what_to_change(tiny_reward_model, small_memory):
    memory = small_memory(5)
    model = RewardModel(identify(str(tiny_reward_model), "reward-model"), device="cpu", share_prompts=False)
    with pytest.raises(EngineError, match=r"memory does not hold one row, whatever the --batch-tokens\. Use a smaller"):
        scores(model)
    assert memory.refused < 20


def test_another_error_is_raised_at_once():
    def fail(items, tokens):
        raise RuntimeError("shapes do not fit")
        yield items, tokens

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(TokenBudget(8).batches([1, 2], fail))


def test_memory_that_ends_elsewhere_is_a_sentence(prefdata, tiny_policy, write, tmp_path, monkeypatch):
    """As in the optimiser's first step, whose states no smaller batch makes smaller."""

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError(MESSAGE)

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    data = write({"prompt": "a", "completion": "b"})
    code, _, err = prefdata("train", "sft", data, "--model", tiny_policy, "--out", tmp_path / "out")
    assert code == 1
    assert "memory is full (CUDA out of memory. Tried to allocate 2.00 GiB)" in err
    assert "--micro-tokens" in err
    assert "bug" not in err
