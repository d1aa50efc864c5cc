"""Every weight of a network comes from its files: nothing is made up, nothing of its layers is passed over."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from prefdata.errors import ModelError
from prefdata.models.files import identify
from prefdata.models.loading import load, read_weights

DOWN = "model.layers.1.mlp.down_proj.weight"
CPU = torch.device("cpu")


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """`changed(folder, lost=(…), **tensors)`: a copy of a model whose file lacks some tensors and has others."""

    def make(folder: Path, lost: tuple[str, ...] = (), more: dict[str, Any] | None = None) -> Path:
        copy = shutil.copytree(folder, tmp_path / f"model-{len(list(tmp_path.iterdir()))}")
        tensors = {name: value for name, value in load_file(copy / "model.safetensors").items() if name not in lost}
        save_file({**tensors, **(more or {})}, copy / "model.safetensors", metadata={"format": "pt"})
        return copy

    return make


def causal(folder: Path) -> Any:
    return load(AutoModelForCausalLM, identify(str(folder), "causal-lm"), "float32", CPU)


@pytest.mark.parametrize("lost", [DOWN, "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"])
def test_a_missing_tensor_is_named(tiny_policy, changed, lost):
    with pytest.raises(ModelError, match=rf"lack 1 tensor \({lost}\) of a LlamaForCausalLM"):
        causal(changed(tiny_policy, (lost,)))


def test_many_missing_tensors_are_counted(tiny_policy, changed):
    lost = tuple(name for name in load_file(tiny_policy / "model.safetensors") if ".layers.1." in name)
    with pytest.raises(ModelError, match=rf"lack {len(lost)} tensors \(model.layers.1.* and {len(lost) - 5} more\)"):
        causal(changed(tiny_policy, lost))


def test_tied_weights_are_no_missing_ones(make_policy, tmp_path):
    folder = make_policy(tmp_path / "tied", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    net = causal(folder)
    assert net.lm_head.weight is net.model.embed_tokens.weight


def test_a_tensor_of_another_shape_is_named_with_both(tiny_policy, changed):
    with pytest.raises(ModelError, match=r"model\.norm\.weight is 5 and should be 64 \(1 such tensor\)"):
        causal(changed(tiny_policy, more={"model.norm.weight": torch.ones(5)}))
    with pytest.raises(ModelError, match=r"lm_head\.weight is 7 x 64 and should be 260 x 64"):
        causal(changed(tiny_policy, more={"lm_head.weight": torch.ones(7, 64)}))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.q_proj.weight_scale",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "model.layers.7.mlp.up_proj.weight",
    ],
)
def test_a_tensor_that_the_layers_have_no_place_for_is_refused(tiny_policy, changed, name):
    """Without it another model would be computed: a norm, a scale, a bias, an adapter, a layer."""
    with pytest.raises(ModelError, match=rf"hold 1 tensor \({name}\) in the layers of a LlamaForCausalLM"):
        causal(changed(tiny_policy, more={name: torch.ones(3)}))


def test_a_head_that_is_not_used_is_named_and_no_fault(tiny_policy, changed, caplog):
    causal(changed(tiny_policy, more={"v_head.summary.weight": torch.ones(1, 64)}))
    assert "1 tensor (v_head.summary.weight) of its files do not belong to a LlamaForCausalLM" in caplog.text


def test_a_reward_models_head_is_never_made_up(tiny_reward_model, changed, prefdata, write):
    """The same words, whoever asks: ranking, and training that goes on from it."""
    folder = changed(tiny_reward_model, ("score.weight",), {"value_head.weight": torch.ones(1, 64)})
    says = (
        "lack 1 tensor (score.weight) of a LlamaForSequenceClassification. They hold 1 tensor (value_head.weight), "
        "which it does not have."
    )
    with pytest.raises(ModelError, match=r"score\.weight") as caught:
        load(AutoModelForSequenceClassification, identify(str(folder), "reward-model"), "float32", CPU)
    assert says in str(caught.value)
    pairs = write({"prompt": "a", "chosen": "b", "rejected": "c"})
    code, _, err = prefdata("train", "rm", pairs, "--model", folder, "--out", folder / "out")
    assert (code, says in err, (folder / "out").exists()) == (2, True, False)


@pytest.mark.parametrize("trainer", ["sft", "dpo", "rm"])
@pytest.mark.parametrize("lost", [DOWN, "lm_head.weight"])
def test_training_refuses_what_sampling_refuses(tiny_policy, changed, prefdata, write, trainer, lost):
    """A reward model has no use for lm_head, and only there may it be missing."""
    rows = {"prompt": "a", "completion": "b"} if trainer == "sft" else {"prompt": "a", "chosen": "b", "rejected": "c"}
    folder = changed(tiny_policy, (lost,))
    code, _, err = prefdata("train", trainer, write(rows), "--model", folder, "--out", folder / "out")
    if trainer == "rm" and lost != DOWN:
        assert code == 0, err
    else:
        assert (code, f"lack 1 tensor ({lost})" in err, (folder / "out").exists()) == (2, True, False)


def test_a_new_head_is_the_only_weight_that_may_be_new(tiny_policy, changed):
    files = identify(str(changed(tiny_policy, ("model.norm.weight",))), "reward-start")
    with pytest.raises(ModelError, match=r"lack 1 tensor \(model\.norm\.weight\) of a LlamaForSequenceClassification"):
        read_weights(AutoModelForSequenceClassification, files, torch.float32, new="score")
