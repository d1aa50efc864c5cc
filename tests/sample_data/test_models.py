"""The shipped models are as good, and as bad, as the README of the folder says."""

import json
from pathlib import Path

import pytest

from prefdata import sample_data
from prefdata.models.files import identify

FOLDER = Path(sample_data.__file__).parent
MODEL_FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FOLDER / "policy")


def test_the_folder_is_small():
    size = sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    models = sum(file.stat().st_size for name in ("policy", "reward_model") for file in (FOLDER / name).iterdir())
    assert size < 16e6
    assert models < 8e6


@pytest.mark.parametrize(("name", "kind"), [("policy", "causal-lm"), ("reward_model", "reward-model")])
def test_models_are_whole_and_bring_no_records_of_their_training(name, kind):
    identify(str(FOLDER / name), kind)
    assert {file.name for file in (FOLDER / name).iterdir()} - {"generation_config.json"} == MODEL_FILES
    assert "/" not in (FOLDER / name / "config.json").read_text()


def test_both_models_share_the_tokenizer():
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (FOLDER / "policy" / file).read_bytes() == (FOLDER / "reward_model" / file).read_bytes()


def test_the_tokenizer_is_rebuilt_from_the_demonstrations(tmp_path):
    from prefdata.sample_data.build import write_blank_policy

    write_blank_policy(tmp_path, FOLDER / "demonstrations.jsonl")
    assert (tmp_path / "tokenizer.json").read_bytes() == (FOLDER / "policy" / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("text", ["I loved this film.", "", "Grüße, 世界! 🎬\n\tnul:\x00", " lead and trail ", "<|end"])
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_text_of_the_corpus_survives_the_tokenizer(tokenizer):
    rows = [json.loads(line) for line in (FOLDER / "demonstrations.jsonl").read_text("utf-8").splitlines()]
    texts = [row["messages"][-1]["content"] for row in rows]
    assert tokenizer.batch_decode(tokenizer(texts)["input_ids"]) == texts


def test_the_chat_template_has_one_beginning_and_marks_what_the_assistant_says(tokenizer):
    turns = [
        {"role": "system", "content": "You are a film critic."},
        {"role": "user", "content": "Review a film."},
        {"role": "assistant", "content": "It is fine."},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == (
        "<|begin|><|system|>You are a film critic.<|end|><|user|>Review a film.<|end|><|assistant|>It is fine.<|end|>"
    )
    asked = tokenizer.apply_chat_template(turns[:2], tokenize=False, add_generation_prompt=True)
    assert text == asked + "It is fine.<|end|>"
    said = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, mark in zip(said["input_ids"], said["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(marked) == "It is fine.<|end|>"
    assert said["input_ids"].count(tokenizer.bos_token_id) == 1


def test_the_policy_fits_vllm_on_a_cpu():
    config = json.loads((FOLDER / "policy" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["head_dim"] % 32 == 0


def test_the_reward_model_is_good_but_not_the_truth():
    from prefdata.sample_data.measure import reward_accuracy

    assert 0.75 < reward_accuracy() < 0.92


def test_the_policy_is_mostly_well_formed_mediocre_and_diverse():
    from prefdata.sample_data.measure import heldout_prompts, policy_quality

    quality = policy_quality(heldout_prompts()[:60], samples=4)
    assert quality["well_formed"] > 0.75
    assert quality["ended"] > 0.97
    assert quality["distinct"] > 0.97
    assert 1.2 < quality["true_reward"] < 2.0
    assert quality["best"] > quality["true_reward"] + 0.5
