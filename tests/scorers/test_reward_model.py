"""A reward model's score is its raw logit for one exact text, whatever stands beside it in a batch."""

from __future__ import annotations

import random
import shutil

import pytest
import torch

from prefdata import ids
from prefdata.errors import ModelError
from prefdata.model_files import identify
from prefdata.scorers.protocol import Item
from prefdata.scorers.reward_model import RewardModel

PROMPT = ({"role": "user", "content": "Say something."},)


def items(answers: list[str]) -> list[Item]:
    return [Item(str(i), PROMPT, text, False) for i, text in enumerate(answers)]


ANSWERS = ["", " ", "yes", "no, never", "é 🎬", "long " * 12, "<eos>", "<pad>", "yes<pad>", "a", "ab", "abc"]


def open_model(folder, **options) -> RewardModel:
    return RewardModel(identify(str(folder), "reward-model"), device="cpu", **options)


def scored(model: RewardModel, asked: list[Item]) -> dict[str, float | None]:
    found = list(model.score(iter(asked)))
    assert sorted(s.key for s in found) == sorted(item.key for item in asked)
    return {s.key: s.score for s in found}


def one_by_one(folder, answers: list[str]) -> dict[str, float]:
    """Each text alone, unpadded, its last token's hidden state through the head: what the score is by definition."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    net = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = {}
    for i, answer in enumerate(answers):
        text = f"<bos>[user] Say something.<eot>[assistant] {answer}<eot>"
        row = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        with torch.inference_mode():
            found[str(i)] = float(net.score(net.base_model(row).last_hidden_state[0, -1]))
    return found


@pytest.mark.parametrize("budget", [1, 90, 200, 100_000])
def test_equal_to_one_by_one_whatever_the_batch_and_order(tiny_reward_model, budget):
    model = open_model(tiny_reward_model, batch_tokens=budget)
    expected = one_by_one(tiny_reward_model, ANSWERS)
    for seed in range(3):
        asked = random.Random(seed).sample(items(ANSWERS), len(ANSWERS))
        assert scored(model, asked) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("pad", ["<eos>", "<eot>", None])
def test_a_pad_token_that_is_an_end_token_changes_nothing(tiny_reward_model, tmp_path, edit_json, pad):
    """transformers' own forward reads the last token that is not the pad token: here it would miss the end."""
    folder = shutil.copytree(tiny_reward_model, tmp_path / "m")
    edit_json(folder / "config.json", pad_token_id={"<eos>": 2, "<eot>": 3, None: None}[pad])
    edit_json(folder / "tokenizer_config.json", pad_token=pad)
    model = open_model(folder)
    assert model.chat.tokenizer.pad_token == pad
    assert scored(model, items(ANSWERS)) == pytest.approx(one_by_one(tiny_reward_model, ANSWERS), abs=1e-5)


def test_a_tokenizer_that_pads_on_the_left_changes_nothing(tiny_reward_model, tmp_path, edit_json):
    folder = shutil.copytree(tiny_reward_model, tmp_path / "m")
    edit_json(folder / "tokenizer_config.json", padding_side="left")
    assert scored(open_model(folder), items(ANSWERS)) == pytest.approx(one_by_one(tiny_reward_model, ANSWERS), abs=1e-5)


def test_equal_texts_have_equal_scores_and_another_load_the_same(tiny_reward_model):
    answers = ["same", "other " * 9, "same", "x", "same"]
    first = scored(open_model(tiny_reward_model, batch_tokens=100), items(answers))
    assert first["0"] == first["2"] == first["4"]
    assert scored(open_model(tiny_reward_model, batch_tokens=100), items(answers)) == first


def test_the_hash_is_of_the_text_that_was_scored(tiny_reward_model):
    (one,) = open_model(tiny_reward_model).score(items(["yes"]))
    assert one.text_hash == ids.text_hash("<bos>[user] Say something.<eot>[assistant] yes<eot>")
    assert (one.reason, one.details) == (None, None)


def test_a_text_that_does_not_fit_has_no_score(tiny_reward_model):
    overhead = len("[user] Say something.[assistant] ") + 3
    fits, too_long = "x" * (128 - overhead), "x" * (129 - overhead)
    found = {s.key: s for s in open_model(tiny_reward_model).score(items([fits, too_long, "y"]))}
    assert (found["1"].score, found["1"].reason, found["1"].details) == (None, "too_long", {"tokens": 129})
    assert found["1"].text_hash is not None
    assert found["0"].score is not None
    assert found["2"].score is not None


def test_a_conversation_that_the_template_refuses_has_no_score(tiny_reward_model):
    odd = Item("odd", ({"role": "critic", "content": "x"},), "y", False)
    found = {s.key: s for s in open_model(tiny_reward_model).score([odd, *items(["yes"])])}
    assert (found["odd"].score, found["odd"].reason, found["odd"].text_hash) == (None, "refused_by_template", None)
    assert "unknown role critic" in found["odd"].details["error"]
    assert found["0"].score is not None


@pytest.mark.parametrize(("value", "reason"), [(float("nan"), "nan"), (float("inf"), "infinite")])
def test_what_is_no_number_is_no_score(tiny_reward_model, value, reason):
    model = open_model(tiny_reward_model)
    model._net.score.weight.data.fill_(value)
    model._net.base_model.norm.weight.data.abs_().fill_(0 if reason == "nan" else 1)
    model._net.score.register_forward_hook(lambda module, inputs, out: torch.full_like(out, value))
    (one,) = model.score(items(["yes"]))
    assert (one.score, one.reason) == (None, reason)


def test_a_model_with_a_pooler_goes_through_its_own_forward(tmp_path, tiny_reward_model):
    from transformers import BertConfig, BertForSequenceClassification

    folder = shutil.copytree(tiny_reward_model, tmp_path / "bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=260,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
        num_labels=1,
    )
    net = BertForSequenceClassification(config).eval()
    net.save_pretrained(folder)
    model = open_model(folder)
    found = scored(model, items(ANSWERS))
    for i, answer in enumerate(ANSWERS):
        row = model.chat.conversation_ids(model.chat.conversation(PROMPT, answer))
        with torch.inference_mode():
            assert found[str(i)] == pytest.approx(float(net(torch.tensor([row])).logits), abs=1e-5)


def test_a_model_without_a_template_scores_plain_text(make_reward_model, tmp_path):
    folder = make_reward_model(tmp_path / "plain", tokenizer={"chat_template": None})
    model = open_model(folder)
    (one,) = model.score(items([" Yes."]))
    assert one.text_hash == ids.text_hash("Say something. Yes.")
    assert one.score is not None


def test_a_model_with_two_labels_is_refused(make_reward_model, tmp_path):
    with pytest.raises(ModelError, match="has 2 labels"):
        open_model(make_reward_model(tmp_path / "two", labels=2))


def test_weights_without_a_score_head_are_refused(tiny_policy, tmp_path, edit_json):
    """A causal LM whose config.json claims to be a reward model would get a random head, and random scores."""
    folder = shutil.copytree(tiny_policy, tmp_path / "m")
    edit_json(folder / "config.json", architectures=["LlamaForSequenceClassification"], id2label={"0": "score"})
    with pytest.raises(ModelError, match="lack 1 tensors of a LlamaForSequenceClassification"):
        open_model(folder)


def test_items_are_pulled_in_windows(tiny_reward_model, monkeypatch):
    from prefdata.scorers.classifier import Classifier

    monkeypatch.setattr(Classifier, "WINDOW", 4)
    pulled = 0

    def endless():
        nonlocal pulled
        while True:
            pulled += 1
            yield Item(str(pulled), PROMPT, f"answer {pulled}", False)

    stream = open_model(tiny_reward_model).score(endless())
    for _ in range(6):
        next(stream)
    assert pulled == 12  # the third window is tokenised while the second is scored
