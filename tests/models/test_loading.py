"""Devices, types and adapters: the sum by hand, PEFT's own result with the adapter unmerged, what is refused."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from prefdata.engines.hf.generator import TransformersGenerator
from prefdata.engines.protocol import Request, Sampling
from prefdata.errors import ModelError, UsageError
from prefdata.models.files import identify
from prefdata.models.loading import merge_adapter, pick_device, pick_dtype


class Small(torch.nn.Module):
    """A matrix of two by three under a name, as a model has many."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 2, bias=False)
        self.linear.weight.data = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])

    def forward(self, rows):
        return self.linear(rows)

    def get_output_embeddings(self) -> None:
        return None


@pytest.fixture
def adapter(tmp_path):
    """`adapter({module: (A, B)}, **config)`: write an adapter and return its folder."""

    def make(pairs, extra=None, **config):
        targets = {"target_modules": [name.rpartition(".")[2] for name in pairs]}
        plain = {"peft_type": "LORA", "r": 1, "lora_alpha": 6, "use_dora": False, "bias": "none"}
        (tmp_path / "adapter_config.json").write_text(json.dumps(plain | targets | config))
        tensors = {f"base_model.model.{name}.lora_A.weight": a for name, (a, _) in pairs.items()}
        tensors |= {f"base_model.model.{name}.lora_B.weight": b for name, (_, b) in pairs.items()}
        save_file({**tensors, **(extra or {})}, tmp_path / "adapter_model.safetensors")
        return tmp_path

    return make


ONE = {"linear": (torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[1.0], [-1.0]]))}


def test_the_sum_by_hand(adapter):
    """r = 1, alpha = 6: 6 B A = 6 (1, -1)ᵀ (1, 0, 2) = ((6, 0, 12), (-6, 0, -12)), on ((1, 2, 3), (4, 5, 6))."""
    net = merge_adapter(Small(), adapter(ONE))
    assert type(net) is Small
    assert net.linear.weight.tolist() == [[7.0, 2.0, 15.0], [-2.0, 5.0, -6.0]]


@pytest.mark.parametrize(("rslora", "scale"), [(False, 6 / 4), (True, 6 / 2)])
def test_the_scale_is_alpha_by_the_rank_or_its_root(adapter, rslora, scale):
    before = Small().linear.weight
    net = merge_adapter(Small(), adapter({"linear": (torch.ones(4, 3), torch.ones(2, 4))}, r=4, use_rslora=rslora))
    torch.testing.assert_close(net.linear.weight, before + scale * 4)


def test_matrices_the_other_way_round_as_in_gpt2(adapter):
    net = Small()
    net.linear = Conv1D(2, 3)  # a weight of 3 by 2
    net.linear.weight.data = torch.zeros(3, 2)
    net = merge_adapter(net, adapter(ONE, fan_in_fan_out=True))
    assert net.linear.weight.tolist() == [[6.0, -6.0], [0.0, 0.0], [12.0, -12.0]]


KINDS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "alphas": {"alpha_pattern": {"q_proj": 9}, "rank_pattern": {"down_proj": 3}},
    "a whole module": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_samples_from_the_merged_model(kind, tiny_policy, tmp_path):
    """Adapters as PEFT trains and saves them; what it computes with the adapter beside the model is what we sample."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **KINDS[kind])
    model = get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * (0.3 if "lora" in name else 0.05))
    model.save_pretrained(tmp_path / "adapter")
    prompt = (1, 70, 80, 90)
    (answer,) = drawn(tiny_policy, prompt, str(tmp_path / "adapter"))
    (plain,) = drawn(tiny_policy, prompt, None)
    assert answer.token_ids != plain.token_ids
    with torch.no_grad():
        row = torch.tensor([[*prompt, *answer.token_ids]])
        logp = model(row).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    assert answer.logprob_sum == pytest.approx(float(logp.gather(1, row[0, len(prompt) :, None]).sum()), abs=1e-4)


def drawn(policy, prompt, lora):
    engine = TransformersGenerator(identify(str(policy), "causal-lm"), device="cpu", dtype="float32", lora=lora)
    found = list(engine.generate([Request("k", prompt, 5, Sampling(1.0, 1.0, 0, 30))]))
    engine.close()
    return found


def test_without_peft_the_command_is_named(adapter, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"^an adapter needs PEFT\. Install it \(pip install 'prefdata\[lora\]'\)\.$"):
        merge_adapter(Small(), adapter(ONE))


def test_a_tensor_that_the_model_has_no_place_for_is_refused(adapter):
    """PEFT warns of it, and computes without."""
    other = {"base_model.model.other.lora_A.weight": torch.ones(1, 3)}
    with pytest.raises(ModelError, match=r"does not belong to this model: .*other.*\. Is it another model's\?"):
        merge_adapter(Small(), adapter(ONE, other))


def test_an_adapter_that_lacks_a_tensor_is_refused(adapter):
    """PEFT warns of it, and takes a random one."""
    folder = adapter(ONE)
    save_file({"base_model.model.linear.lora_A.weight": ONE["linear"][0]}, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"lacks .*linear.lora_B.*\. Is it another model's\?"):
        merge_adapter(Small(), folder)


def test_another_models_adapter_is_refused(adapter):
    with pytest.raises(ModelError, match=r"cannot merge the adapter .*Target modules .*other"):
        merge_adapter(Small(), adapter({"other": ONE["linear"]}))
    with pytest.raises(ModelError, match=r"cannot merge the adapter .*size mismatch"):
        merge_adapter(Small(), adapter({"linear": (torch.ones(1, 5), torch.ones(2, 1))}))


def test_what_cannot_be_merged_is_refused(adapter):
    folder = adapter(ONE, {"base_model.model.linear.lora_B.bias": torch.ones(2)}, lora_bias=True)
    with pytest.raises(ModelError, match="Impossible to merge LoRA with `lora_bias=True`"):
        merge_adapter(Small(), folder)


def test_numbers_that_are_none_are_refused(adapter):
    with pytest.raises(ModelError, match="NaNs detected"):
        merge_adapter(Small(), adapter({"linear": (torch.full((1, 3), torch.nan), torch.ones(2, 1))}))


def test_a_matrix_that_a_model_uses_twice_is_refused(adapter, make_policy, tmp_path_factory):
    folder = make_policy(tmp_path_factory.mktemp("tied") / "model", tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(ModelError, match="changes lm_head, whose weights the model uses twice"):
        merge_adapter(model, adapter({"lm_head": (torch.ones(1, 64), torch.ones(260, 1))}))


def test_a_folder_that_is_no_adapter_is_refused(tmp_path, adapter):
    with pytest.raises(ModelError, match=r"is not an adapter: it has no adapter_config\.json"):
        merge_adapter(Small(), tmp_path / "nothing")
    folder = adapter(ONE)
    (folder / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="cannot merge the adapter"):
        merge_adapter(Small(), folder)


def test_pickles_are_never_read(adapter):
    """PEFT falls back to adapter_model.bin."""
    folder = adapter(ONE)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"it has no adapter_model\.safetensors"):
        merge_adapter(Small(), folder)


def test_what_is_no_device_or_no_type_is_wrong_usage():
    with pytest.raises(UsageError, match=r"^--device should be cpu, cuda, cuda:1, …, not 'foo'\.$"):
        pick_device("foo")
    with pytest.raises(UsageError, match=r"^--dtype should be auto, float32, bfloat16, float16, not 'float12'\.$"):
        pick_dtype("float12", torch.device("cpu"))


def test_a_device_that_this_machine_has_not():
    with pytest.raises(UsageError, match=r"^--device cuda:99: .*\. Use --device cpu\.$"):
        pick_device("cuda:99")
