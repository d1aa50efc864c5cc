"""What `train ppo` has besides its methods: critic, scorers, shaping, PTX, averages, alarms, memory."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from ppo_rollout import rollout_of
from safetensors.torch import load_file

from prefdata.errors import InputError, ModelError, UsageError
from prefdata.models.files import identify
from prefdata.prompts.ingest import ingest
from prefdata.scores.rank import rank
from prefdata.specs import RewardModelSpec
from prefdata.specs.ingest import IngestSpec
from prefdata.storage.run import Run
from prefdata.train import models
from prefdata.train.ppo.alarms import Alarms
from prefdata.train.ppo.experience import measure
from prefdata.train.ppo.memory import memory_by_role
from prefdata.train.ppo.ppo import PpoTraining, train_ppo
from prefdata.train.ppo.presets import PRESETS
from prefdata.train.ppo.roles import Roles
from prefdata.train.ppo.specs import PpoSpec

OWN_TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"


def scores_of(run: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(run / f"scores/scorer={name}/*.parquet").sort("candidate_id")


def test_the_reward_is_what_rank_gives_by_the_reward_models_own_template(
    run: Path, spec: Any, tmp_path: Path, make_reward_model: Any
) -> None:
    reward = make_reward_model(tmp_path / "rm", tokenizer={"chat_template": OWN_TEMPLATE, "pad_token": "<eos>"})
    train_ppo(run, spec(reward=(f"reward_model={reward}",), max_steps=1), tmp_path / "out")
    rank(Run(run), RewardModelSpec(reward_model=str(reward), name="rank"))
    ours, theirs = scores_of(run, "ppo"), scores_of(run, "rank")
    assert ours["text_hash"].to_list() == theirs["text_hash"].to_list()
    assert ours["score"].to_list() == pytest.approx(theirs["score"].to_list(), abs=1e-5)


def test_the_critic_starts_with_what_the_reward_model_says(
    run: Path, spec: Any, tmp_path: Path, make_reward_model: Any
) -> None:
    """Its value before the first token of a response is the reward model's score of the prompt alone."""
    from transformers import AutoModelForSequenceClassification

    reward = make_reward_model(tmp_path / "rm", seed=5)
    asked = spec(critic=str(reward), responses=3, critic_lr=1e-4)
    files = identify(asked.model, "causal-lm")
    roles = Roles(models.load(files, asked, models.load_chat(files, asked).tokenizer), asked)
    rollout = rollout_of()
    values, theirs = measure(roles, rollout).values, AutoModelForSequenceClassification.from_pretrained(reward)
    for place, example in enumerate(rollout.examples):
        with torch.no_grad():
            want = float(theirs(torch.tensor(example.prompt, dtype=torch.int64)[None]).logits[0, 0])
        assert values[3 * place, 0] == pytest.approx(want, abs=1e-5)
    assert [group.get("lr_factor", 1.0) for group in roles.make_optimizer().param_groups] == [1, 1, 0.1, 0.1]
    done = train_ppo(run, spec(critic=str(reward), max_steps=2, save_every=1), tmp_path / "out")
    assert "score.weight" not in load_file(done.path / "model.safetensors")


def test_a_critic_of_other_tokens_is_refused(run: Path, spec: Any, tmp_path: Path) -> None:
    other = Path("sample_data/reward_model")
    with pytest.raises(ModelError, match="other tokens"):
        train_ppo(run, spec(critic=str(other)), tmp_path / "out")
    assert not (run / "candidates").exists()


def test_several_scorers_make_one_reward_and_each_is_kept(run: Path, spec: Any, tmp_path: Path, metrics: Any) -> None:
    file = tmp_path / "reward.py"
    reward = (f"short:function={file}:brevity", f"loud:function={file}:vowels")
    train_ppo(run, spec(reward=reward, combine="short - 2*loud", max_steps=1), tmp_path / "out")
    short, loud, both = (scores_of(run, name)["score"] for name in ("ppo-short", "ppo-loud", "ppo"))
    assert both.to_list() == pytest.approx((short - 2 * loud).to_list())
    (line,) = metrics()
    assert line["score/loud"] == pytest.approx(loud.mean())
    assert line["score"] == pytest.approx(both.mean(), rel=1e-5)


def test_llama_2s_gate(run: Path, spec: Any, tmp_path: Path) -> None:
    """Where safety's probability is below .15 it is the reward, else helpfulness; then whitened over the step."""
    file = tmp_path / "reward.py"
    reward = (f"help:function={file}:size", f"safe:function={file}:brevity")
    rule = "gate(safety=safe, helpful=help)"
    asked = spec(reward=reward, combine=rule, max_steps=1, batch_size=6, max_tokens=40)
    train_ppo(run, asked, tmp_path / "out")
    safe, useful, both = (scores_of(run, name)["score"].to_list() for name in ("ppo-safe", "ppo-help", "ppo"))
    raw = torch.tensor([s if s < -1.734601 else h for s, h in zip(safe, useful, strict=True)], dtype=torch.float64)
    assert 0 < sum(s < -1.734601 for s in safe) < 6
    assert both == pytest.approx(((raw - raw.mean()) / raw.std(correction=0)).tolist())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"reward": ("a:function=f.py:f", "b:function=f.py:g")}, "say with --combine"),
        ({"reward": ("a:function=f.py:f", "function=f.py:g"), "combine": "a"}, "begins with a name"),
        ({"reward": ("function=f.py:f",), "combine": "other"}, "'other'"),
        ({"reward": ("combine=min(a, b)",)}, "single responses"),
        ({"reward": ("functoin=f.py:f",)}, "name one scorer"),
    ],
)
def test_rewards_that_cannot_be(settings: Any, said: str, run: Path, spec: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        train_ppo(run, spec(**settings), tmp_path / "out")


def test_the_average_of_the_weights_is_saved(run: Path, spec: Any, tmp_path: Path) -> None:
    """With a share of .75 in each step: 3/4 of the first weights and 1/4 of the policy's after one of them."""
    asked = spec(ema=0.75, max_steps=1)
    files = identify(asked.model, "causal-lm")
    roles = Roles(models.load(files, asked, models.load_chat(files, asked).tokenizer), asked)
    first = {name: one.clone() for name, one in roles.policy.model.named_parameters()}
    with torch.no_grad():
        for one in roles.policy.model.parameters():
            one.add_(1.0)
    roles.follow()
    assert all(torch.allclose(one, first[name] + 0.25) for name, one in roles.average.named_parameters())
    done = train_ppo(run, asked, tmp_path / "out")
    saved = load_file(done.path / "model.safetensors")
    moved = max(float((saved[name] - first[name].detach()).abs().max()) for name in saved)
    assert 0 < moved < 4 * asked.lr * 0.3  # 4 steps of Adam move a weight by up to lr each; a quarter of it counts


def test_passes_end_where_the_policy_has_moved_too_far(run: Path, spec: Any, tmp_path: Path, metrics: Any) -> None:
    train_ppo(run, spec(max_steps=1, kl_stop=1e-9), tmp_path / "out")
    train_ppo(run, spec(max_steps=1, kl_stop=1e9, name="far"), tmp_path / "far")
    assert (metrics()[0]["updates"], metrics("far")[0]["updates"]) == (1.0, 4.0)


def test_demonstrations_are_imitated(run: Path, spec: Any, tmp_path: Path, metrics: Any) -> None:
    rows = [{"prompt": f"Review {i}", "response": "aaaa"} for i in range(5)]
    (tmp_path / "ptx.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = spec(ptx=str(tmp_path / "ptx.jsonl"), ptx_coef=5.0, ptx_batch=5, epochs=4, lr=3e-3)
    train_ppo(run, asked, tmp_path / "out")
    losses = [line["loss/ptx"] for line in metrics()]
    assert losses[-1] < losses[0] - 1


def test_responses_are_shown(run: Path, spec: Any, tmp_path: Path) -> None:
    train_ppo(run, spec(show_every=2), tmp_path / "out")
    shown = sorted((tmp_path / "out/responses").iterdir())
    assert [path.name for path in shown] == ["step-000002.md", "step-000004.md"]
    assert "| Review " in shown[0].read_text()


def test_truncated_responses_lose_the_penalty(run: Path, spec: Any, tmp_path: Path, metrics: Any) -> None:
    """Of 4 tokens at most, many have no end token; the policy's padding is its end token."""
    config = Path(spec().model) / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "pad_token": "<eos>"}))
    asked = spec(max_tokens=4, missing_end_penalty=3.0, kl_coef=0.0, max_steps=1, batch_size=6, responses=4)
    train_ppo(run, asked, tmp_path / "out")
    rows = pl.read_parquet(run / "candidates/sampler=ppo/*.parquet")
    truncated, (line,) = (rows["finish_reason"] == "length").mean(), metrics()
    assert 0 < truncated < 1  # type: ignore[operator]
    assert line["ended"] == pytest.approx(1 - truncated)  # type: ignore[operator]
    assert line["reward"] == pytest.approx(line["score"] - 3 * truncated, abs=1e-5)  # type: ignore[operator]
    ended = rows.filter(pl.col("finish_reason") == "stop")["token_ids"].list.last()
    assert set(ended) <= {2, 3}


def test_an_adapter_is_trained_against_the_model_without_it(run: Path, spec: Any, tmp_path: Path, metrics: Any) -> None:
    done = train_ppo(run, spec(lora_r=4, lr=1e-2), tmp_path / "out")
    assert (done.path / "adapter_model.safetensors").exists()
    kls = [line["kl"] for line in metrics()]
    assert kls[0] == pytest.approx(0, abs=1e-6)
    assert abs(kls[-1]) > 1e-4


def test_prompts_that_cannot_be_sampled(run: Path, spec: Any, tmp_path: Path) -> None:
    """Of 128 positions 60 tokens of response leave 68: enough for seven prompts, and not for the one of over 97."""
    rows = [{"prompt": "Review " + "x" * 90}, {"prompt": "Review again"}]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ingest(Run(run), [str(tmp_path / "more.jsonl")], IngestSpec(source="more"))
    with pytest.raises(InputError, match=r"it has \d+ tokens, and --max-tokens 60 leaves 68\. Or give --on"):
        train_ppo(run, spec(max_tokens=60), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done = train_ppo(run, spec(max_tokens=60, on_bad_prompts="drop", epochs=1), tmp_path / "out")
    assert (done.report.rows_in, done.report.figures["prompts too_long"]) == (7, 1)
    with pytest.raises(InputError, match=r"no prompt can be sampled \(too_long 8\)"):
        train_ppo(run, spec(max_tokens=127, on_bad_prompts="drop", name="none"), tmp_path / "none")


def test_recomputed_layers_give_the_same_model(run: Path, spec: Any, tmp_path: Path) -> None:
    for name, checkpointing in (("plain", False), ("recomputed", True)):
        asked = spec(max_steps=2, name=name, gradient_checkpointing=checkpointing)
        train_ppo(run, asked, tmp_path / name)
    plain, other = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "recomputed"))
    assert all(torch.allclose(plain[name], other[name], atol=1e-6) for name in plain)


@pytest.mark.parametrize("dtype", ["bf16-mixed", "bfloat16"])
def test_other_precisions_train(dtype: str, run: Path, spec: Any, tmp_path: Path, metrics: Any) -> None:
    train_ppo(run, spec(dtype=dtype, max_steps=2, update_epochs=1), tmp_path / "out")
    first, second = metrics()
    assert (first["kl"], first["ratio"]) == pytest.approx((0, 1), abs=1e-6)
    assert second["kl"] != 0


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_set_what_is_not_given(preset: str) -> None:
    given = {"model": "m", "reward": ("function=f.py:f",), "preset": preset, "lr": 0.5}
    spec = PpoSpec.parse(given)
    assert {name: getattr(spec, name) for name in PRESETS[preset]} == {
        name: 0.5 if name == "lr" else value for name, value in PRESETS[preset].items()
    }
    assert spec.lr == 0.5
    with pytest.raises(UsageError, match="is for --method ppo"):
        PpoSpec.parse({**given, "method": "rloo"})


def steps(*changes: dict[str, float]) -> list[dict[str, float]]:
    usual = {"kl": 1.0, "entropy": 2.0, "clip_fraction": 0.1, "tokens": 20.0, "ended": 0.9, "score": 0.0}
    return [{**usual, **change} for change in changes]


@pytest.mark.parametrize(
    ("change", "alarm", "advice"),
    [
        ({"kl": 60.0}, "kl", "--kl-coef"),
        ({"entropy": 0.3}, "entropy", "--entropy-coef"),
        ({"clip_fraction": 0.4}, "clip_fraction", "--kl-stop"),
        ({"tokens": 50.0}, "tokens", "--length-coef"),
        ({"ended": 0.4}, "ended", "--max-tokens"),
    ],
)
def test_alarms_say_once_what_to_do(
    change: dict[str, float], alarm: str, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    alarms = Alarms()
    with caplog.at_level(logging.WARNING):
        raised = [alarms.watch(step, line) for step, line in enumerate(steps({}, change, change), start=1)]
    assert raised == [[], [alarm], []]
    assert advice in caplog.text
    assert Alarms(json.loads(json.dumps(alarms.state))).watch(4, steps(change)[0]) == []


def test_over_optimisation_is_an_alarm() -> None:
    """The reward rises by .1 a step; the watched score is flat (noise) at first, and then falls as fast."""
    alarms, raised = Alarms(), []
    for step in range(30):
        gold = 0.01 * (-1) ** step if step < 15 else -0.1 * (step - 15)
        (line,) = steps({"score": 0.1 * step, "score/gold": gold})
        raised += [(step, name) for name in alarms.watch(step + 1, line)]
    ((step, name),) = raised
    assert name == "score/gold"
    assert 15 < step < 25


def test_memory_by_role_is_what_the_networks_take(spec: Any, tmp_path: Path, make_reward_model: Any) -> None:
    asked = spec(critic=str(make_reward_model(tmp_path / "rm")), ema=0.9)
    files = identify(asked.model, "causal-lm")
    found = {role.role: role for role in memory_by_role(files, asked, {})}
    roles = Roles(models.load(files, asked, models.load_chat(files, asked).tokenizer), asked)
    assert roles.critic is not None
    networks = {"policy": roles.policy.model, "critic": roles.critic.model, "reference": roles.reference}
    optimizer = roles.make_optimizer()
    for parameter in (p for network in roles.trained for p in network.parameters()):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, network in {**networks, "average": roles.average}.items():
        assert found[name].weights == sum(p.numel() * p.element_size() for p in network.parameters()), name
    slots = [slot for state in optimizer.state.values() for name, slot in state.items() if name != "step"]
    assert found["policy"].optimiser + found["critic"].optimiser == sum(s.numel() * s.element_size() for s in slots)


def test_a_dry_run_shows_memory_and_writes_nothing(run: Path, spec: Any, tmp_path: Path, prefdata: Any) -> None:
    asked = spec()
    arguments = ("train", "ppo", run, "--model", asked.model, "--reward", asked.reward[0], "--split", "all")
    code, out, err = prefdata(*arguments, "--out", tmp_path / "out", "--dry-run", "--format", "json")
    assert code == 0, err
    rows = json.loads(out)
    assert [row["role"] for row in rows][:3] == ["policy", "reference", "critic"]
    assert rows[-1]["role"] == "all"
    assert not (tmp_path / "out").exists()
    assert not (run / "candidates").exists()


def test_the_identity_has_the_scorers_models_and_no_defaults(run: Path, spec: Any, tmp_path: Path) -> None:
    """A setting that a later version adds to a scorer, off by default, changes no training's id."""
    training = PpoTraining(Run(run), spec(), tmp_path / "out", replace=False)
    ((name, reward),) = training.lineage.spec["reward"].items()
    assert (name, set(reward)) == ("reward", {"function", "format"})
