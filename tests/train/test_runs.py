"""Training from end to end on tiny models: what is learned, written, resumed and refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from prefdata.errors import BadRows, EngineError, InputError, ModelError, SpecConflict, UsageError
from prefdata.train.loop import learning_rate
from prefdata.train.specs import DpoSpec, RmSpec, SftSpec, TrainSpec
from prefdata.train.train import train_dpo, train_rm, train_sft


class Killed(Exception):
    """Stands for whatever stops a run."""


def stop_after(step: int) -> Any:
    def progress(done: int, total: int, **figures: float) -> None:
        if done == step and "tokens" in figures:  # the reference pass has none
            raise Killed

    return progress


@pytest.fixture
def pairs(tmp_path: Path, make_pairs: Any, write_jsonl: Any) -> Path:
    rows = [{**row, "split": "test" if i % 5 == 0 else "train"} for i, row in enumerate(make_pairs(30))]
    return write_jsonl(tmp_path / "pairs.jsonl", rows)


@pytest.fixture
def demonstrations(tmp_path: Path, make_pairs: Any, write_jsonl: Any) -> Path:
    return write_jsonl(tmp_path / "sft.jsonl", [{"messages": r["prompt"] + r["chosen"]} for r in make_pairs(24)])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@torch.no_grad()
def logp(folder: Path, row: dict[str, Any], side: str) -> float:
    """log p(answer | prompt) by transformers alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    start = len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False))
    ids = torch.tensor([tokenizer.apply_chat_template(row["prompt"] + row[side], return_dict=False)])
    table = model(input_ids=ids).logits.log_softmax(-1)[0, start - 1 : -1]
    return float(table.gather(1, ids[0, start:, None]).sum())


def test_dpo(pairs: Path, tiny_policy: Path, tmp_path: Path, read_metrics: Any) -> None:
    out = tmp_path / "dpo"
    done = train_dpo(pairs, DpoSpec(model=str(tiny_policy), lr=1e-3, batch_size=8, epochs=4), out)
    report = done.report
    assert (done.did, done.path) == ("made", out)
    assert (report.step, report.unit, report.rows_in, report.rows_out) == ("train dpo", "pairs", 30, 24)
    assert report.dropped == {"held_out": 6}
    assert report.figures["steps"] == 12
    lines = read_metrics(out)
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert lines[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert lines[11]["loss"] < 0.4
    assert lines[11]["rewards/accuracies"] == 1.0
    assert lines[12]["step"] == 12
    held = [row for row in map(json.loads, pairs.read_text().splitlines()) if row["split"] == "test"]
    ratios = [logp(out, row, "chosen") - logp(tiny_policy, row, "chosen") for row in held]
    assert lines[12]["eval/rewards/chosen"] == pytest.approx(0.1 * sum(ratios) / len(ratios), abs=1e-4)
    assert {f.name for f in out.iterdir()} >= {"_SUCCESS", "_spec.json", "metrics.jsonl", "tensorboard", "config.json"}
    assert not (out / "_checkpoint").exists()
    assert next((out / "tensorboard").iterdir()).stat().st_size > 1000


def test_the_report_has_means_over_the_run_and_not_the_last_batch(
    pairs: Path, tiny_policy: Path, tmp_path: Path, read_metrics: Any
) -> None:
    """24 pairs in batches of 7 are 4 steps an epoch, the last with 3 pairs: of 24 steps a tenth is 2."""
    out = tmp_path / "dpo"
    spec = DpoSpec(model=str(tiny_policy), lr=1e-3, batch_size=7, epochs=6, log_every=1)
    figures = train_dpo(pairs, spec, out).report.figures
    lines = [line for line in read_metrics(out) if "loss" in line]
    sizes = [7, 7, 7, 3] * 6
    assert (figures["steps"], len(lines)) == (24, 24)
    for name in ("loss", "rewards/accuracies", "rewards/margins"):
        for part, rows in (("", slice(None)), (" first", slice(2)), (" last", slice(-2, None))):
            total = sum(line[name] * size for line, size in zip(lines[rows], sizes[rows], strict=True))
            assert figures[f"{name}{part}"] == pytest.approx(total / sum(sizes[rows]), abs=1e-6)
    assert figures["loss last"] < figures["loss"] < figures["loss first"]
    assert figures["eval/loss"] == read_metrics(out)[-1]["eval/loss"]


def test_the_saved_policy_is_a_whole_model(demonstrations: Path, tiny_policy: Path, tmp_path: Path) -> None:
    out = tmp_path / "sft"
    train_sft(demonstrations, SftSpec(model=str(tiny_policy), lr=1e-3, batch_size=8, epochs=4), out)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_policy).chat_template
    assert model.generation_config.eos_token_id == [2, 3]
    assert model.dtype == torch.float32
    assert json.loads((out / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert (out / "model.safetensors").stat().st_mode & 0o077 == (out / "config.json").stat().st_mode & 0o077


def test_a_reward_model_scores_the_same_after_reloading(pairs: Path, tiny_policy: Path, tmp_path: Path) -> None:
    """From a causal LM: the head is new, trained, and saved."""
    out = tmp_path / "rm"
    done = train_rm(pairs, RmSpec(model=str(tiny_policy), lr=1e-3, batch_size=8, epochs=4), out)
    assert done.report.figures["rewards/accuracies last"] == 1.0
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.config.num_labels == 1
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]

    @torch.no_grad()
    def score(row: dict[str, Any], side: str) -> float:
        ids = tokenizer.apply_chat_template(row["prompt"] + row[side], return_dict=False)
        return float(model(input_ids=torch.tensor([ids])).logits)

    held = [row for row in rows if row["split"] == "test"]
    gaps = [score(row, "chosen") - score(row, "rejected") for row in held]
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["eval/rewards/margins"] == pytest.approx(sum(gaps) / len(gaps), abs=1e-5)


def test_padding_that_is_the_end_token_is_warned_of(
    pairs: Path, make_policy: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_policy(tmp_path / "policy", tokenizer={"pad_token": "<eos>"}, pad_token_id=None)
    train_rm(pairs, RmSpec(model=str(model)), tmp_path / "rm")
    assert "its padding token is its end token" in caplog.text
    assert json.loads((tmp_path / "rm" / "config.json").read_text())["pad_token_id"] == 2


def test_a_reward_model_goes_on_from_its_own_head(pairs: Path, tiny_reward_model: Path, tmp_path: Path) -> None:
    train_rm(pairs, RmSpec(model=str(tiny_reward_model), lr=1e-9, batch_size=8), tmp_path / "rm")
    assert torch.allclose(weights(tmp_path / "rm")["score.weight"], weights(tiny_reward_model)["score.weight"])


def test_from_scratch_needs_no_weights_and_obeys_the_seed(
    demonstrations: Path, pairs: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_policy, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ModelError, match="holds no weights"):
        train_sft(demonstrations, SftSpec(model=str(bare)), tmp_path / "x")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_sft(demonstrations, SftSpec(model=str(bare), from_scratch=True, seed=seed), tmp_path / name)
    assert same(tmp_path / "a", tmp_path / "b")
    assert not same(tmp_path / "a", tmp_path / "c")
    train_rm(pairs, RmSpec(model=str(bare), from_scratch=True), tmp_path / "rm")
    with pytest.raises(UsageError, match="needs a trained model as its reference"):
        DpoSpec.parse({"model": "m", "from_scratch": True})


@pytest.mark.parametrize("trainer", ["sft", "rm", "dpo"])
def test_stopped_and_continued_gives_the_same_bits(
    trainer: str, pairs: Path, demonstrations: Path, tiny_policy: Path, tmp_path: Path, read_metrics: Any
) -> None:
    train, spec, data = {
        "sft": (train_sft, SftSpec, demonstrations),
        "rm": (train_rm, RmSpec, pairs),
        "dpo": (train_dpo, DpoSpec, pairs),
    }[trainer]
    settings = spec(model=str(tiny_policy), lr=1e-3, batch_size=5, epochs=2, save_every=2, log_every=3, eval_every=4)
    whole = train(data, settings, tmp_path / "whole")
    for step in (1, 3, 4, 8):
        with pytest.raises(Killed):
            train(data, settings, tmp_path / "cut", progress=stop_after(step))
        assert not (tmp_path / "cut" / "_SUCCESS").exists()
    done = train(data, settings, tmp_path / "cut")
    assert done.did == "continued"
    assert done.report.figures == whole.report.figures
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "cut")
    assert len(read_metrics(tmp_path / "cut")) == {"sft": 4, "rm": 7, "dpo": 7}[trainer]


def test_dropout_is_the_same_after_a_stop(demonstrations: Path, make_policy: Any, tmp_path: Path) -> None:
    model = make_policy(tmp_path / "policy", attention_dropout=0.3)
    settings = SftSpec(model=str(model), lr=1e-3, batch_size=4, save_every=1)
    train_sft(demonstrations, settings, tmp_path / "whole")
    with pytest.raises(Killed):
        train_sft(demonstrations, settings, tmp_path / "cut", progress=stop_after(3))
    train_sft(demonstrations, settings, tmp_path / "cut")
    assert same(tmp_path / "whole", tmp_path / "cut")
    train_sft(demonstrations, settings.model_copy(update={"seed": 1}), tmp_path / "other")
    assert not same(tmp_path / "whole", tmp_path / "other")


def test_dropout_is_drawn_anew_in_each_step_of_sft_and_is_off_elsewhere(
    demonstrations: Path, pairs: Path, make_policy: Any, tmp_path: Path, read_metrics: Any
) -> None:
    """With all the data in each step and a learning rate that moves nothing, only dropout can change the loss."""
    model = str(make_policy(tmp_path / "policy", attention_dropout=0.3))
    still = {"model": model, "lr": 1e-12, "batch_size": 100, "epochs": 3}
    train_sft(demonstrations, SftSpec(**still), tmp_path / "sft")
    train_dpo(pairs, DpoSpec(**still), tmp_path / "dpo")
    assert len({round(line["loss"], 4) for line in read_metrics(tmp_path / "sft")}) == 3
    losses = [line["loss"] for line in read_metrics(tmp_path / "dpo") if "loss" in line]
    assert losses == pytest.approx([math.log(2)] * 3, abs=1e-6)


def test_the_gradient_of_sft_is_that_of_the_mean_over_all_tokens(
    demonstrations: Path, tiny_policy: Path, tmp_path: Path, read_metrics: Any
) -> None:
    train_sft(demonstrations, SftSpec(model=str(tiny_policy), batch_size=24), tmp_path / "sft")
    (line,) = read_metrics(tmp_path / "sft")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_policy), AutoTokenizer.from_pretrained(tiny_policy)
    total, count = torch.zeros(()), 0
    for row in map(json.loads, demonstrations.read_text().splitlines()):
        prompt, whole = (
            tokenizer.apply_chat_template(turns, add_generation_prompt=ask, return_dict=False)
            for turns, ask in ((row["messages"][:-1], True), (row["messages"], False))
        )
        table = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        total = total - sum(table[place - 1, whole[place]] for place in range(len(prompt), len(whole)))
        count += len(whole) - len(prompt)
    (total / count).backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    assert line["loss"] == pytest.approx((total / count).item(), abs=1e-5)
    assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_micro_batches_do_not_change_the_result(
    pairs: Path, tiny_policy: Path, tmp_path: Path, read_metrics: Any
) -> None:
    settings = DpoSpec(model=str(tiny_policy), lr=1e-3, batch_size=8, epochs=2)
    curves = []
    for tokens in (64, 300, 100000):
        train_dpo(pairs, settings.model_copy(update={"micro_tokens": tokens}), tmp_path / str(tokens))
        curves.append([line["loss"] for line in read_metrics(tmp_path / str(tokens)) if "loss" in line])
    assert curves[0] == pytest.approx(curves[2], abs=1e-5)
    assert curves[1] == pytest.approx(curves[2], abs=1e-5)


def test_sft_is_normalised_over_all_tokens_of_a_step(
    demonstrations: Path, tiny_policy: Path, tmp_path: Path, read_metrics: Any
) -> None:
    """Answers of unequal lengths: a mean of micro-batches' means would differ."""
    settings = SftSpec(model=str(tiny_policy), lr=1e-3, batch_size=8)
    for tokens in (40, 100000):
        train_sft(demonstrations, settings.model_copy(update={"micro_tokens": tokens}), tmp_path / str(tokens))
    one, two = (read_metrics(tmp_path / name) for name in ("40", "100000"))
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in two], abs=1e-5)
    assert [line["grad_norm"] for line in one] == pytest.approx([line["grad_norm"] for line in two], rel=1e-4)


def test_weights_count(tiny_policy: Path, tmp_path: Path, make_pairs: Any, write_jsonl: Any, read_metrics: Any) -> None:
    """A pair of weight 3 trains as three copies of it would."""
    a, b = make_pairs(2)
    heavy = write_jsonl(tmp_path / "heavy.jsonl", [{**a, "weight": 3.0}, {**b, "weight": 1.0}])
    copies = write_jsonl(tmp_path / "copies.jsonl", [a, a, a, b])
    settings = RmSpec(model=str(tiny_policy), lr=1e-3, batch_size=4, epochs=3)
    for path in (heavy, copies):
        train_rm(path, settings, tmp_path / path.stem)
    one, two = (read_metrics(tmp_path / name) for name in ("heavy", "copies"))
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in one] == pytest.approx([line[name] for line in two], rel=1e-4), name


def test_margins_are_used_when_asked(
    tiny_reward_model: Path, tmp_path: Path, make_pairs: Any, write_jsonl: Any
) -> None:
    data = write_jsonl(tmp_path / "p.jsonl", [{**row, "margin": 2.0} for row in make_pairs(8)])
    losses = {}
    for use in (False, True):
        spec = RmSpec(model=str(tiny_reward_model), use_margin=use)
        losses[use] = train_rm(data, spec, tmp_path / str(use)).report.figures["loss"]
    assert losses[True] > losses[False] + 0.5


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_soft_labels_of_one_probability_are_label_smoothing_to_the_bit(
    smoothing: float, pairs: Path, tiny_policy: Path, tmp_path: Path, write_jsonl: Any
) -> None:
    rows = [{**json.loads(line), "probability": 1 - smoothing} for line in pairs.read_text().splitlines()]
    shared: dict[str, Any] = {"model": str(tiny_policy), "lr": 1e-3, "batch_size": 8, "epochs": 2}
    train_dpo(pairs, DpoSpec(label_smoothing=smoothing, **shared), tmp_path / "one")
    train_dpo(write_jsonl(tmp_path / "soft.jsonl", rows), DpoSpec(soft_labels=True, **shared), tmp_path / "each")
    assert same(tmp_path / "one", tmp_path / "each")
    train_dpo(pairs, DpoSpec(**shared), tmp_path / "none")
    assert not same(tmp_path / "one", tmp_path / "none")


def test_a_label_that_is_surely_wrong_is_learned_the_other_way_round(
    pairs: Path, tiny_reward_model: Path, tmp_path: Path, write_jsonl: Any, read_metrics: Any
) -> None:
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    wrong = [{**row, "probability": 0.0} for row in rows]
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    losses = []
    for name, data, soft in (("wrong", wrong, True), ("swapped", swapped, False), ("as-said", wrong, False)):
        spec = RmSpec(model=str(tiny_reward_model), lr=1e-2, batch_size=8, soft_labels=soft)
        train_rm(write_jsonl(tmp_path / f"{name}.jsonl", data), spec, tmp_path / name)
        losses.append([line["loss"] for line in read_metrics(tmp_path / name) if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0] != pytest.approx(losses[2], abs=1e-2)


@pytest.mark.parametrize(
    ("spec", "said", "problem"),
    [
        (DpoSpec, {"label_smoothing": 0.1}, "--soft-labels take the place of --label-smoothing"),
        (RmSpec, {"use_margin": True}, "--soft-labels and --use-margin both say"),
    ],
)
def test_soft_labels_go_with_nothing_that_says_the_same(spec: Any, said: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        spec.parse({"model": "m", "soft_labels": True, **said})


def test_entropy_is_of_policies() -> None:
    with pytest.raises(UsageError, match="a reward model has no distribution over tokens"):
        RmSpec.parse({"model": "m", "log_entropy": True})


def test_the_same_again_is_kept_and_other_settings_conflict(pairs: Path, tiny_policy: Path, tmp_path: Path) -> None:
    out, settings = tmp_path / "dpo", DpoSpec(model=str(tiny_policy))
    first = train_dpo(pairs, settings, out)
    before = (out / "model.safetensors").stat().st_mtime_ns
    again = train_dpo(pairs, settings.model_copy(update={"log_every": 5}), out)
    assert (again.did, again.report) == ("kept", first.report)
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(SpecConflict, match=r"beta: 0\.1 -> 0\.2"):
        train_dpo(pairs, settings.model_copy(update={"beta": 0.2}), out)
    assert train_dpo(pairs, settings.model_copy(update={"beta": 0.2}), out, replace=True).did == "replaced"
    pairs.write_text(pairs.read_text().replace("film", "book"))
    with pytest.raises(SpecConflict, match=r"was trained on other data \(pairs\.jsonl as it was then\)"):
        train_dpo(pairs, settings.model_copy(update={"beta": 0.2}), out)


def test_numbers_that_are_not_finite_stop_the_run_and_keep_the_checkpoint(
    pairs: Path, tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefdata.train.objectives import pairs as losses

    calls, whole = [], losses.sigmoid

    def breaks(v: Any, *, beta: float) -> Any:
        calls.append(1)
        return whole(v, beta=beta) * float("nan") if len(calls) == 3 else whole(v, beta=beta)

    monkeypatch.setattr(losses, "sigmoid", breaks)
    settings = DpoSpec(model=str(tiny_policy), batch_size=4, save_every=1, micro_tokens=100000)
    with pytest.raises(EngineError, match=r"loss is nan at step 3 of 6\. The last checkpoint is kept"):
        train_dpo(pairs, settings, tmp_path / "dpo")
    assert (tmp_path / "dpo" / "_checkpoint").exists()
    assert len((tmp_path / "dpo" / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_falling_chosen_answer_is_warned_of_once(
    pairs: Path, tiny_policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_dpo(pairs, DpoSpec(model=str(tiny_policy), lr=3e-2, batch_size=4, epochs=3), tmp_path / "dpo")
    said = [record.getMessage() for record in caplog.records if "nats per token" in record.getMessage()]
    assert len(said) == 1


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        ({"model": "./none"}, ModelError, "there is no folder"),
        ({"model": "REWARD"}, ModelError, "A causal language model"),
        ({"max_length": 20}, BadRows, "more than 20"),
        ({"max_length": 20, "on_long": "drop"}, UsageError, "nothing is left to train on"),
        ({"max_length": 4000}, UsageError, "more than the 128 positions"),
        ({"device": "cuda:7"}, UsageError, "--device cuda:7: "),
        ({"pairing": None, "model": "BARE"}, ModelError, "holds no weights"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(
    spec: dict[str, Any],
    error: type,
    said: str,
    pairs: Path,
    tiny_policy: Path,
    tiny_reward_model: Path,
    tmp_path: Path,
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_policy, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    names = {"REWARD": str(tiny_reward_model), "BARE": str(bare)}
    values = {"model": str(tiny_policy), **spec}
    values["model"] = names.get(values["model"], values["model"])
    with pytest.raises(error, match=said) as caught:
        train_dpo(pairs, DpoSpec(**values), tmp_path / "out")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_only_a_test_split_is_nothing_to_train_on(
    tiny_policy: Path, tmp_path: Path, make_pairs: Any, write_jsonl: Any
) -> None:
    data = write_jsonl(tmp_path / "p.jsonl", [{**row, "split": "test"} for row in make_pairs(3)])
    with pytest.raises(UsageError, match="3 rows, all of them in the test split"):
        train_dpo(data, DpoSpec(model=str(tiny_policy)), tmp_path / "out")


def test_a_folder_of_others_is_not_touched(pairs: Path, tiny_policy: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="holds files that prefdata did not write"):
        train_dpo(pairs, DpoSpec(model=str(tiny_policy)), tmp_path / "out")
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_a_full_disk_is_told(pairs: Path, tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    from prefdata.errors import StorageError
    from prefdata.train import checkpoint

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(StorageError, match="cannot write the checkpoint"):
        train_dpo(pairs, DpoSpec(model=str(tiny_policy), batch_size=4, save_every=1), tmp_path / "out")


def test_learning_rates() -> None:
    """10 steps, 2 of warm-up: a third and two thirds of the peak, the peak, then down by an eighth a step."""
    spec = TrainSpec(model="m", lr=0.8, warmup=0.2)
    linear = [learning_rate(spec, step, 10) for step in range(10)]
    assert linear == pytest.approx([0.8 / 3, 1.6 / 3, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    cosine = [learning_rate(spec.model_copy(update={"lr_scheduler": "cosine"}), step, 10) for step in (2, 6)]
    assert cosine == pytest.approx([0.8, 0.4])
    assert learning_rate(spec.model_copy(update={"lr_scheduler": "constant"}), 9, 10) == 0.8


def test_generation_defaults_that_do_not_go_together_do_not_end_a_training(
    make_policy: Any, edit_json: Any, demonstrations: Path, tmp_path: Path
) -> None:
    """transformers refuses to save a temperature without do_sample, which Llama 2 was published with."""
    policy = make_policy(tmp_path / "policy")
    edit_json(policy / "generation_config.json", temperature=0.9, top_p=0.6)
    before = json.loads((policy / "generation_config.json").read_text())
    done = train_sft(demonstrations, SftSpec(model=str(policy), max_steps=1), tmp_path / "out")
    assert json.loads((done.path / "generation_config.json").read_text()) == before
