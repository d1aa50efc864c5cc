"""check reward-model: good models pass, and every defect is found by its check."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from prefdata.explore import reward_model_checks
from prefdata.explore.reward_model_checks import check
from prefdata.scorers.classifier.hf import RewardModel

NAMES = ["batch", "batch of two", "order", "padding", "identical pair", "one begin token", "end token", "token ids",
         "score position", "raw logit", "text as trained", "reload"]  # fmt: skip


@pytest.fixture
def model(fitting_reward_model):
    return fitting_reward_model


def checked(folder, **options) -> dict[str, reward_model_checks.CheckResult]:
    return {one.check: one for one in check(str(folder), engine="transformers", device="cpu", **options)}


def failed(folder, **options) -> set[str]:
    return {name for name, one in checked(folder, **options).items() if one.passed is False}


def test_a_good_model_passes(model):
    found = checked(model)
    assert [name for name, one in found.items() if one.passed] == NAMES
    assert found["transformers = vLLM"].verdict == "not checked"
    assert found["one begin token"].seen == "1 to 1"


def test_several_labels_are_all_checked(make_reward_model, tmp_path):
    found = checked(make_reward_model(tmp_path / "m", labels=3, max_position_embeddings=256))
    assert [name for name, one in found.items() if one.passed] == NAMES


def test_pad_that_is_the_end_token_passes(model, tmp_path, edit_json):
    folder = shutil.copytree(model, tmp_path / "m")
    edit_json(folder / "tokenizer_config.json", pad_token="<eos>", padding_side="left")
    assert failed(folder) == set()


def test_a_sigmoid_is_found(model, monkeypatch):
    real = RewardModel.logits
    monkeypatch.setattr(RewardModel, "logits", lambda self, rows: ((r, x.sigmoid()) for r, x in real(self, rows)))
    assert "raw logit" in failed(model)


def test_scores_that_move_with_their_neighbours_are_found(model, monkeypatch):
    real = RewardModel._forward

    def moved(self, rows):
        return real(self, rows) + 0.01 * (len({len(row.ids) for row in rows}) > 1)

    monkeypatch.setattr(RewardModel, "_forward", moved)
    assert failed(model) == {"padding"}


def test_a_lost_end_token_is_found(model, monkeypatch):
    from prefdata.scorers.classifier.rendering import TextRenderer

    real = TextRenderer.encode
    monkeypatch.setattr(TextRenderer, "encode", lambda self, texts: [ids[:-4] for ids in real(self, texts)])
    assert {"end token", "text as trained"} <= failed(model)


def test_two_begin_tokens_are_found(model, monkeypatch):
    from prefdata.scorers.classifier.rendering import TextRenderer

    real = TextRenderer.encode
    monkeypatch.setattr(TextRenderer, "encode", lambda self, texts: [[1, *ids] for ids in real(self, texts)])
    assert {"one begin token", "text as trained"} <= failed(model)


def test_another_load_that_differs_is_found(model, monkeypatch):
    real, loads = reward_model_checks.RewardModel, []

    def load(*arguments, **settings):
        scorer = real(*arguments, **settings)
        if loads:
            with torch.no_grad():
                scorer._net.score.weight.add_(1e-3)
        loads.append(scorer)
        return scorer

    monkeypatch.setattr(reward_model_checks, "RewardModel", load)
    assert failed(model) == {"reload"}


def test_the_command_prints_a_table_and_its_exit_code_tells(model, prefdata, monkeypatch):
    code, out, _ = prefdata("check", "reward-model", model, "--engine", "transformers", "-f", "jsonl")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row["check"] for row in rows if row["verdict"] == "pass"] == NAMES
    monkeypatch.setitem(reward_model_checks.EXACT, "float32", -1.0)
    code, out, _ = prefdata("check", "reward-model", model, "--engine", "transformers")
    assert code == 1
    assert "fail" in out


@pytest.mark.vllm
def test_transformers_and_vllm_agree(model):
    found = {one.check: one for one in check(str(model), engine="vllm", device="cpu")}
    assert found["transformers = vLLM"].passed
    assert float(found["transformers = vLLM"].seen) < 1e-4
