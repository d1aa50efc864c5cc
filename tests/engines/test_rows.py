"""Rows under way: their cache grows, shrinks and is reordered, and the numbers stay those of one whole pass."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from prefdata.engines.hf import batch_state as module
from prefdata.engines.hf.batch_state import BatchState, PreallocatedCacheLayer, packed

SIZES = {"vocab_size": 50, "max_position_embeddings": 96}
SMALL = {**SIZES, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def llama():
    from transformers import LlamaConfig

    return LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2, initializer_range=0.3))


def mistral():
    return MistralForCausalLM(
        MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=7, initializer_range=0.3, head_dim=8)
    )


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_positions=96, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    )


def whole(net, ids: list[int]) -> torch.Tensor:
    return net(torch.tensor([ids])).logits[0, -1]


@pytest.mark.parametrize("make", [llama, mistral, gpt2])
@torch.inference_mode()
def test_appending_and_selecting_give_what_one_pass_gives(make, monkeypatch):
    monkeypatch.setattr(module, "ROOM", 5)  # so that the room runs out several times
    torch.manual_seed(0)
    net, source = make().eval(), random.Random(0)
    prompts = [tuple(source.choices(range(50), k=k)) for k in (3, 11, 3, 20, 7)]
    prompts[2] = prompts[0]
    rows, texts = BatchState(net, prompts, 96), [list(prompt) for prompt in prompts]
    for step in range(40):
        for row, text in enumerate(texts):
            torch.testing.assert_close(rows.logits[row], whole(net, text), atol=1e-4, rtol=1e-4)
        if step % 6 == 5:  # drop, repeat, reorder
            index = source.choices(range(len(texts)), k=len(texts))
            rows.select(torch.tensor(index))
            texts = [list(texts[i]) for i in index]
        tokens = source.choices(range(50), k=len(texts))
        rows.append(torch.tensor(tokens))
        texts = [[*text, token] for text, token in zip(texts, tokens, strict=True)]


@torch.inference_mode()
def test_a_row_may_run_past_the_positions_of_the_network():
    """One that has ended stays until enough others have; GPT-2 has no position 96 to look up."""
    net = gpt2().eval()
    rows = BatchState(net, [tuple([1] * 95), (1, 2)], 96)
    for token in (3, 4, 5):
        rows.append(torch.tensor([token, token]))
    torch.testing.assert_close(rows.logits[1], whole(net, [1, 2, 3, 4, 5]), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_prompt_that_rows_share_is_computed_once():
    net, sizes = llama().eval(), []
    forward = net.forward
    net.forward = lambda **given: sizes.append(tuple(given["input_ids"].shape)) or forward(**given)
    rows = BatchState(net, [(1, 2, 3)] * 4 + [(4, 5)], 96)
    assert sizes == [(2, 3)]
    assert rows.logits.shape == (5, 50)


def test_a_token_and_a_row_that_goes_copy_no_other():
    layer, states = PreallocatedCacheLayer(), torch.arange(24.0).view(4, 1, 3, 2)
    first, _ = layer.update(states, states)
    layer.batch_select_indices(packed(torch.tensor([True, False, True, True])))
    second, _ = layer.update(states[:3, :, :1], states[:3, :, :1])
    assert second.data_ptr() == first.data_ptr()
    assert second[:, 0, :3].tolist() == states[[0, 3, 2], 0].tolist()
    assert second[:, 0, 3].tolist() == states[:3, 0, 0].tolist()


@given(st.lists(st.booleans()))
def test_the_last_rows_fill_the_gaps(going):
    stay = packed(torch.tensor(going, dtype=torch.bool)).tolist()
    assert sorted(stay) == [i for i, goes in enumerate(going) if goes]
    assert all(stay[i] == i for i in range(len(stay)) if going[i])
