"""Devices, types and LoRA adapters: the sum by hand, an adapter in PEFT's format, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from prefdata.engines.protocol import Request, Sampling
from prefdata.engines.transformers import TransformersGenerator
from prefdata.errors import ModelError, UsageError
from prefdata.model_files import identify
from prefdata.models.loading import merge_lora, pick_device, pick_dtype

QUERY, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


class Small(torch.nn.Module):
    """A matrix of two by three under a name, as a model has many."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 2, bias=False)
        self.linear.weight.data = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])

    def get_output_embeddings(self) -> None:
        return None


@pytest.fixture
def adapter(tmp_path):
    """`adapter({module: (A, B)}, **config)`: write an adapter and return its folder."""

    def make(pairs, extra=None, **config):
        said = {"peft_type": "LORA", "r": 1, "lora_alpha": 6, "use_dora": False, "bias": "none", **config}
        (tmp_path / "adapter_config.json").write_text(json.dumps(said))
        tensors = {f"base_model.model.{name}.lora_A.weight": a for name, (a, _) in pairs.items()}
        tensors |= {f"base_model.model.{name}.lora_B.weight": b for name, (_, b) in pairs.items()}
        save_file({**tensors, **(extra or {})}, tmp_path / "adapter_model.safetensors")
        return tmp_path

    return make


def test_the_sum_by_hand(adapter):
    """r = 1, alpha = 6: 6 B A = 6 (1, -1)ᵀ (1, 0, 2) = ((6, 0, 12), (-6, 0, -12)), on ((1, 2, 3), (4, 5, 6))."""
    net = Small()
    merge_lora(net, adapter({"linear": (torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[1.0], [-1.0]]))}))
    assert net.linear.weight.tolist() == [[7.0, 2.0, 15.0], [-2.0, 5.0, -6.0]]


@pytest.mark.parametrize(("rslora", "scale"), [(False, 6 / 4), (True, 6 / 2)])
def test_the_scale_is_alpha_by_the_rank_or_its_root(adapter, rslora, scale):
    net, before = Small(), Small().linear.weight
    down, up = torch.ones(4, 3), torch.ones(2, 4)
    merge_lora(net, adapter({"linear": (down, up)}, r=4, use_rslora=rslora))
    torch.testing.assert_close(net.linear.weight, before + scale * 4)


def test_matrices_the_other_way_round_as_in_gpt2(adapter):
    net = Small()
    net.linear = Conv1D(2, 3)  # a weight of 3 by 2
    net.linear.weight.data = torch.zeros(3, 2)
    merge_lora(net, adapter({"linear": (torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[1.0], [-1.0]]))}))
    assert net.linear.weight.tolist() == [[6.0, -6.0], [0.0, 0.0], [12.0, -12.0]]


def pairs_for(model, rank: int = 2) -> dict:
    torch.manual_seed(1)
    shapes = {name: model.get_submodule(name).weight.shape for name in (QUERY, DOWN)}
    return {
        name: (torch.randn(rank, inside) * 0.3, torch.randn(out, rank) * 0.3) for name, (out, inside) in shapes.items()
    }


def test_the_engine_samples_from_the_merged_model(adapter, tiny_policy, tmp_path_factory):
    model = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)
    pairs = pairs_for(model)
    folder = adapter(pairs, r=2, lora_alpha=4)
    prompt = (1, 70, 80, 90)
    (answer,) = drawn(tiny_policy, prompt, str(folder))
    (plain,) = drawn(tiny_policy, prompt, None)
    assert answer.token_ids != plain.token_ids
    with torch.no_grad():
        for name, (down, up) in pairs.items():
            model.get_submodule(name).weight += 4 / 2 * up @ down
        row = torch.tensor([[*prompt, *answer.token_ids]])
        logp = model(row).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    assert answer.logprob_sum == pytest.approx(float(logp.gather(1, row[0, len(prompt) :, None]).sum()), abs=1e-4)


def drawn(policy, prompt, lora):
    engine = TransformersGenerator(identify(str(policy), "causal-lm"), device="cpu", dtype="float32", lora=lora)
    found = list(engine.generate([Request("k", prompt, 5, Sampling(1.0, 1.0, 0, 30))]))
    engine.close()
    return found


ONE = {"linear": (torch.ones(1, 3), torch.ones(2, 1))}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"alpha_pattern": {"linear": 3}}, "alpha_pattern"),
        ({"lora_bias": True}, "lora_bias"),
        ({"peft_type": "IA3"}, "peft_type IA3"),
    ],
)
def test_what_is_more_than_plain_lora_is_refused(adapter, config, says):
    net = Small()
    with pytest.raises(ModelError, match=rf"holds more than plain LoRA \({says}\). Merge it into its model with PEFT"):
        merge_lora(net, adapter(ONE, **config))
    assert net.linear.weight.tolist() == Small().linear.weight.tolist()


def test_a_tensor_that_is_no_part_of_a_pair_is_refused(adapter):
    bias = {"base_model.model.linear.bias": torch.ones(2)}
    with pytest.raises(ModelError, match=r"more than plain LoRA \(base_model.model.linear.bias\)"):
        merge_lora(Small(), adapter(ONE, bias))
    half = {"base_model.model.other.lora_A.weight": torch.ones(1, 3)}
    with pytest.raises(ModelError, match="no pairs of lora_A and lora_B"):
        merge_lora(Small(), adapter(ONE, half))


def test_another_models_adapter_is_refused(adapter):
    with pytest.raises(ModelError, match="changes other, which the model does not have so"):
        merge_lora(Small(), adapter({"other": ONE["linear"]}))
    with pytest.raises(ModelError, match="changes linear, which the model does not have so"):
        merge_lora(Small(), adapter({"linear": (torch.ones(1, 5), torch.ones(2, 1))}))


def test_a_matrix_that_a_model_uses_twice_is_refused(adapter, make_policy, tmp_path_factory):
    folder = make_policy(tmp_path_factory.mktemp("tied") / "model", tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(ModelError, match="changes lm_head, whose weights the model uses twice"):
        merge_lora(model, adapter({"lm_head": (torch.ones(1, 64), torch.ones(260, 1))}))


def test_a_folder_that_is_no_adapter_is_refused(tmp_path, adapter):
    with pytest.raises(ModelError, match="cannot read the LoRA adapter"):
        merge_lora(Small(), tmp_path / "nothing")
    folder = adapter(ONE)
    (folder / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match=r"cannot read the LoRA adapter .* as PEFT saves them"):
        merge_lora(Small(), folder)


def test_what_is_no_device_or_no_type_is_wrong_usage():
    with pytest.raises(UsageError, match=r"^--device should be cpu, cuda, cuda:1, …, not 'foo'\.$"):
        pick_device("foo")
    with pytest.raises(UsageError, match=r"^--dtype should be auto, float32, bfloat16, float16, not 'float12'\.$"):
        pick_dtype("float12", torch.device("cpu"))


def test_a_device_that_this_machine_has_not():
    with pytest.raises(UsageError, match=r"^--device cuda:99: .*\. Use --device cpu\.$"):
        pick_device("cuda:99")
