"""An adapter's folder as the model: loaded with the model that it belongs to, or a sentence about what is lacking."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from conftest import save_tokenizer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from prefdata.chat.encoder import Chat
from prefdata.engines.hf.generator import TransformersGenerator
from prefdata.engines.protocol import Request, Sampling
from prefdata.errors import ModelError, UsageError
from prefdata.models.files import identify
from prefdata.scorers.causal_lm.likelihood import Continuation, LanguageModel
from prefdata.scorers.classifier.hf import RewardModel
from prefdata.scorers.protocol import ScoringItem
from prefdata.train.specs import DpoSpec
from prefdata.train.train import train_dpo

PROMPT = (1, 70, 80, 90)


def adapt(net, folder: Path, base: str, **settings) -> Path:
    """Write a random adapter of `net`, as PEFT writes it; `net` is then the two together."""
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], **settings)
    adapted = peft.get_peft_model(net, config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora" in name:
                weight.copy_(torch.randn_like(weight) * 0.2)
    adapted.save_pretrained(folder)
    written = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**written, "base_model_name_or_path": base}))
    return folder


@pytest.fixture
def adapter(tiny_policy: Path, tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_pretrained(tiny_policy)
    return adapt(net, tmp_path / "adapter", str(tiny_policy)), net.eval()


def logps(net, prompt, ids) -> float:
    with torch.no_grad():
        table = net(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    return float(table.gather(1, torch.tensor(ids)[:, None]).sum())


def test_candidates_and_likelihoods_are_those_of_model_and_adapter(adapter, tiny_policy):
    folder, net = adapter
    files = identify(str(folder), "causal-lm")
    engine = TransformersGenerator(files, device="cpu")
    (answer,) = engine.generate([Request("k", PROMPT, 5, Sampling(1.0, 1.0, 0, 20))])
    expected = logps(net, PROMPT, answer.token_ids)
    assert answer.logprob_sum == pytest.approx(expected, abs=1e-3)
    plain = LanguageModel(identify(str(tiny_policy), "causal-lm"), device="cpu")
    asked = [Continuation(PROMPT, answer.token_ids)]
    assert LanguageModel(files, device="cpu").sums(asked) == pytest.approx([expected], abs=1e-3)
    assert plain.sums(asked) != pytest.approx([expected], abs=1e-2)


def test_ends_and_templates_are_the_models_unless_the_adapter_has_a_tokenizer(adapter, tiny_policy):
    folder, _ = adapter
    chat, own = (Chat.of(identify(str(one), "causal-lm")) for one in (folder, tiny_policy))
    assert (chat.end_ids, chat.text([{"role": "user", "content": "x"}], answer_next=True)) == (
        own.end_ids,
        own.text([{"role": "user", "content": "x"}], answer_next=True),
    )
    save_tokenizer(folder, chat_template="{% for m in messages %}{{ m.content }}|{% endfor %}")
    chat = Chat.of(identify(str(folder), "causal-lm"))
    assert chat.text([{"role": "user", "content": "x"}], answer_next=True) == "x|"
    assert set(own.end_ids) <= set(chat.end_ids)


def test_the_identity_is_of_both(adapter, tiny_policy, tmp_path, make_policy):
    folder, _ = adapter
    found = identify(str(folder), "causal-lm")
    base = identify(str(tiny_policy), "causal-lm")
    assert found.revision.startswith(f"{base.revision}+")
    assert found.text_revision == base.text_revision
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert identify(str(moved), "causal-lm").revision == found.revision
    config = json.loads((moved / "adapter_config.json").read_text())
    other = make_policy(tmp_path / "other", seed=5)
    (moved / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(other)}))
    assert identify(str(moved), "causal-lm").revision != found.revision
    (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 99}))
    assert identify(str(folder), "causal-lm").revision != found.revision


def test_a_model_beside_the_adapter_is_found_by_a_relative_path(adapter, tiny_policy, tmp_path, edit_json):
    folder, _ = adapter
    shutil.copytree(tiny_policy, tmp_path / "base")
    edit_json(folder / "adapter_config.json", base_model_name_or_path="base")
    found = identify(str(folder), "causal-lm")
    assert found.base.path == (tmp_path / "base").resolve()


def test_a_reward_model_whose_head_is_in_the_adapter(tiny_policy, tmp_path):
    """PEFT keeps the new head of a language model's classifier whole, beside the adapter."""
    torch.manual_seed(0)
    net = AutoModelForSequenceClassification.from_pretrained(tiny_policy, num_labels=1)
    net.config.pad_token_id = 0
    folder = adapt(net, tmp_path / "adapter", str(tiny_policy), task_type="SEQ_CLS")
    model = RewardModel(identify(str(folder), "reward-model"), device="cpu")
    message = {"role": "user", "content": "Say something."}
    (found,) = model.score([ScoringItem("k", (message,), "fine", False)])
    row = model.chat.encode([model.chat.conversation([message], "fine")], complete=True)[0]
    with torch.no_grad():
        assert found.score == pytest.approx(float(net.eval()(torch.tensor([row])).logits), abs=1e-4)


def test_training_begins_with_model_and_adapter_and_writes_a_whole_model(adapter, tmp_path, write):
    """With a learning rate of nearly 0 what is written is what training began with."""
    folder, net = adapter
    pairs = write(*({"prompt": f"Say {n}.", "chosen": "a", "rejected": "b"} for n in range(4)))
    done = train_dpo(pairs, DpoSpec(model=str(folder), lr=1e-12, batch_size=4), tmp_path / "out")
    assert {path.name for path in done.path.glob("*.safetensors")} == {"model.safetensors"}
    assert not (done.path / "adapter_config.json").exists()
    kept = load_file(done.path / "model.safetensors")
    merged = net.merge_and_unload() if hasattr(net, "merge_and_unload") else net
    name = "model.layers.0.mlp.down_proj"
    parts = dict(merged.named_modules())[name]
    torch.testing.assert_close(kept[f"{name}.weight"], parts.base_layer.weight + parts.get_delta_weight("default"))
    assert identify(str(done.path), "causal-lm").base is None


def refused(folder: Path, kind="causal-lm") -> str:
    with pytest.raises(ModelError) as error:
        identify(str(folder), kind)
    return str(error.value)


def test_a_model_that_is_not_found_is_named_with_the_places(adapter, edit_json, tmp_path):
    folder, _ = adapter
    edit_json(folder / "adapter_config.json", base_model_name_or_path="../nowhere/base")
    message = refused(folder)
    assert f"{folder} is an adapter of ../nowhere/base, which cannot be used" in message
    assert f"{folder}/../nowhere/base" in message
    assert f"--lora {folder}" in message


@pytest.mark.parametrize("named", [None, "", 5, [], {"a": 1}, "\0"])
def test_an_adapter_that_names_no_model(adapter, edit_json, named):
    folder, _ = adapter
    edit_json(folder / "adapter_config.json", base_model_name_or_path=named)
    assert "names no model that it belongs to" in refused(folder)


def test_an_adapter_of_an_adapter_or_of_itself(adapter, edit_json):
    folder, _ = adapter
    edit_json(folder / "adapter_config.json", base_model_name_or_path=str(folder))
    assert "which is an adapter too" in refused(folder)


@pytest.mark.parametrize("broken", ["", "[", "[]", "[" * 5000, "null"])
def test_a_broken_config_of_an_adapter(adapter, broken):
    folder, _ = adapter
    (folder / "adapter_config.json").write_text(broken)
    assert "adapter_config.json" in refused(folder)


def test_weights_that_are_cut_or_absent(adapter):
    folder, _ = adapter
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    assert "not a whole safetensors file" in refused(folder)
    weights.unlink()
    assert "holds no adapter_model.safetensors" in refused(folder)


def test_a_model_and_an_adapter_in_one_folder(adapter, tiny_policy):
    """Given the two, transformers takes the adapter with the model that its config names."""
    folder, _ = adapter
    shutil.copytree(tiny_policy, folder, dirs_exist_ok=True)
    assert "holds a model (model.safetensors) and an adapter" in refused(folder)


def test_another_kind_of_model_is_refused(adapter):
    folder, _ = adapter
    assert "A reward model or a classifier" in refused(folder, "reward-model")


def test_vllm_takes_the_adapter_as_it_is_and_one_alone(adapter):
    from prefdata.engines.vllm.generator import _adapter

    files = identify(str(adapter[0]), "causal-lm")
    assert _adapter(files, None) == adapter[0].resolve()
    with pytest.raises(UsageError, match="one at a time: leave out --lora x"):
        _adapter(files, "x")


def test_vllm_scores_with_no_adapter(tiny_reward_model, tmp_path):
    from prefdata.scorers.classifier.vllm import PoolingRewardModel

    net = AutoModelForSequenceClassification.from_pretrained(tiny_reward_model)
    folder = adapt(net, tmp_path / "adapter", str(tiny_reward_model), task_type="SEQ_CLS")
    with pytest.raises(ModelError, match="Use --engine transformers, or merge the adapter"):
        PoolingRewardModel(identify(str(folder), "reward-model"))
