"""Rows that continue from kept keys and values have the states of whole rows, for every network that is used so."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from prefdata.scorers.classifier.backbones import CachedBackbone

SIZES = {"vocab_size": 50, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "pad_token_id": 0}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.1}


def rope(**said: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10_000.0, "factor": 2.0, "original_max_position_embeddings": 32, **said}}


FITTING = {
    "llama": ("Llama", {}),
    "biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "grouped": ("Llama", {"num_key_value_heads": 2}),
    "wide heads": ("Llama", {"head_dim": 20}),
    "stretched": ("Llama", rope(rope_type="linear")),
    "llama 3": ("Llama", rope(rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0)),
    "yarn": ("Llama", rope(rope_type="yarn")),
    "mistral": ("Mistral", {"num_key_value_heads": 1, "sliding_window": None}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2}),
}


def network(kind: str, **settings: Any) -> Any:
    """A random network whose norms and biases are random as well, as those of a trained one are."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **settings})
    net = getattr(transformers, f"{kind}Model")(config).eval()
    for name, weight in net.named_parameters():
        if "norm" in name or name.endswith("bias"):
            nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.3)
    return net


def rows_of(lengths: list[int], draw: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(lengths)
    ids = [[draw.randrange(1, 50) for _ in range(n)] + [0] * (width - n) for n in lengths]
    return torch.tensor(ids), torch.tensor(lengths)


@pytest.mark.parametrize("name", FITTING)
def test_the_states_are_those_of_whole_rows_in_transformers(name: str) -> None:
    kind, settings = FITTING[name]
    net = network(kind, **settings)
    assert CachedBackbone.unfit(net, 0, torch.device("cpu")) is None
    cached, draw = CachedBackbone(net), random.Random(name)
    for _ in range(5):
        beginnings, begun = rows_of([draw.randint(1, 20) for _ in range(3)], draw)
        kept = cached.begin(beginnings, begun)
        of = torch.tensor([draw.randrange(3) for _ in range(6)])
        ids, ends = rows_of([draw.randint(1, 20) for _ in of], draw)
        width = int(begun[of].max())
        found = cached.go_on(ids, ends, begun[of], ((keys[of][:, :, :width], v[of][:, :, :width]) for keys, v in kept))
        alone = [
            torch.cat([beginnings[one, : begun[one]], row[:end]]) for one, row, end in zip(of, ids, ends, strict=True)
        ]
        assert torch.allclose(found, whole(net, alone), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def whole(net: Any, rows: list[torch.Tensor]) -> torch.Tensor:
    """Each row alone through transformers: the state at its last token."""
    return torch.stack([net(input_ids=row[None]).last_hidden_state[0, -1] for row in rows])


def test_no_weight_of_the_network_is_changed() -> None:
    net = network("Llama")
    before = {name: weight.clone() for name, weight in net.named_parameters()}
    ids, ends = rows_of([3, 7], random.Random(0))
    cached = CachedBackbone(net)
    cached.go_on(ids, ends, ends, cached.begin(ids, ends))
    assert all(torch.equal(weight, before[name]) for name, weight in net.named_parameters())
