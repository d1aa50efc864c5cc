"""Packed = padded = one by one: the same log-probabilities and gradients in every family, and the check of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from prefdata.errors import UsageError
from prefdata.train import attention
from prefdata.train.attention import PACKED_ATTENTION, Packing, Span
from prefdata.train.batches import Example, collate
from prefdata.train.head import Head
from prefdata.train.logps import response_logps
from prefdata.train.self_check import pick_layout

SHAPE = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WIDE = {**SHAPE, "head_dim": 32}
GPT2 = {"vocab_size": 260, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128, "initializer_range": 0.15}
GEMMA2 = {**WIDE, "sliding_window": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", WIDE),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", SHAPE),
    "qwen2-window": (
        "Qwen2Config",
        "Qwen2ForCausalLM",
        {**SHAPE, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", WIDE),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {**GPT2, "bos_token_id": 1, "eos_token_id": 2}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**GEMMA2, "query_pre_attn_scalar": 32}),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**WIDE, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**WIDE, "sliding_window": 8}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {**SHAPE, "sliding_window": 8}),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", SHAPE),
    "granite": ("GraniteConfig", "GraniteForCausalLM", {**SHAPE, "logits_scaling": 3.0}),
    "cohere": ("CohereConfig", "CohereForCausalLM", {**SHAPE, "logit_scale": 0.3}),
}
"""Windows of 8 are shorter than most examples; caps and scales are strong enough to be seen."""


def example(prompt: int, *responses: int, seed: int = 0) -> Example:
    draw = np.random.default_rng([prompt, seed])
    ids = [draw.integers(4, 260, length).astype(np.int32) for length in (prompt, *responses)]
    return Example(ids[0], tuple(ids[1:]))


EXAMPLES = [
    example(5, 3, 9),
    example(12, 1, 2, 4),
    example(3, 9, 8, 10),
    example(1, 20, 4),
    example(30, 7),
    example(0, 6, 3),
    example(0, 9, 9, 9),
]
"""Pairs, groups whose responses attend together and each alone, a demonstration; a prompt of one token, and none."""


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    config, name, settings = FAMILIES[request.param]
    torch.manual_seed(0)
    made = getattr(transformers, name)(getattr(transformers, config)(**settings)).eval()
    made.set_attn_implementation("eager")  # the only one of transformers' that caps attention's logits
    return made


Result = tuple[torch.Tensor, dict[str, torch.Tensor]]


def gradient(model: Any, compute: Callable[[], torch.Tensor]) -> Result:
    model.zero_grad()
    values = compute()
    values.square().sum().backward()
    return values.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def in_layout(model: Any, layout: Any, chunk: int) -> Result:
    batch = collate(EXAMPLES, np.arange(len(EXAMPLES)), layout)
    return gradient(model, lambda: response_logps(model, batch, chunk_elements=chunk).sums)


def one_by_one(model: Any) -> Result:
    """By transformers alone, from all logits, one response at a time."""

    def logp(prompt: np.ndarray, response: np.ndarray) -> torch.Tensor:
        ids = torch.tensor(np.concatenate([prompt, response])).long()
        table = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
        return sum(table[i - 1, ids[i]] for i in range(max(1, len(prompt)), len(ids))).float()  # type: ignore[union-attr]

    def compute() -> torch.Tensor:
        rows = [[logp(e.prompt, r) for r in e.responses] + [torch.zeros(())] * (3 - len(e.responses)) for e in EXAMPLES]
        return torch.stack([torch.stack(row) for row in rows])

    return gradient(model, compute)


def assert_same(one: Result, other: Result) -> None:
    assert torch.allclose(one[0], other[0], rtol=1e-5, atol=5e-5)
    scale = max(float(grad.norm()) for grad in one[1].values())
    for name, grad in one[1].items():
        # Gradients that are nothing but rounding (the keys' biases) are compared with the others' size.
        assert float((grad - other[1][name]).norm()) <= 1e-5 * max(float(grad.norm()), 1e-2 * scale), name


def test_packed_equals_padded_equals_one_by_one(model: Any) -> None:
    """Numbers and gradients; the head in chunks of seven tokens on one side, and whole on the other."""
    alone, padded = one_by_one(model), in_layout(model, "padded", 10**9)
    model.set_attn_implementation(PACKED_ATTENTION)
    packed = in_layout(model, "packed", 260 * 7)
    assert_same(alone, padded)
    assert_same(padded, packed)


def test_every_family_is_packed(model: Any) -> None:
    assert pick_layout(model, "auto", "it") == "packed"
    assert model.config._attn_implementation == PACKED_ATTENTION


@pytest.mark.parametrize(("family", "attribute"), [("gemma2", "cap"), ("granite", "scale"), ("cohere", "scale")])
def test_what_a_family_does_with_its_logits_is_kept(family: str, attribute: str) -> None:
    config, _, settings = FAMILIES[family]
    made = getattr(transformers, config)(**settings)
    head = Head.of(type("Model", (), {"config": made, "get_output_embeddings": lambda _: None})())
    want = {"gemma2": 3.0, "granite": 1 / 3, "cohere": 0.3}[family]
    assert getattr(head, attribute) == pytest.approx(want)


@pytest.fixture
def llama() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**WIDE)).eval()


def test_a_wrong_mask_is_found_and_rows_are_padded(llama: Any, monkeypatch: Any, caplog: Any) -> None:
    """Responses that see each other: other numbers, so the model is trained on padded rows, and it is said."""

    def leaking(span: Span, window: int | None) -> torch.Tensor:
        length = span.end - span.start
        return torch.ones(length, length, dtype=torch.bool).tril()

    monkeypatch.setattr(attention, "_visible", leaking)
    assert pick_layout(llama, "auto", "models/x") == "padded"
    assert llama.config._attn_implementation == "sdpa"
    assert "models/x: each response is a row" in caplog.text
    assert "its numbers differ by" in caplog.text
    with pytest.raises(UsageError, match=r"models/x cannot be trained with --batch-layout packed \(its numbers differ"):
        pick_layout(llama, "packed", "models/x")


def test_right_numbers_with_wrong_gradients_are_found(llama: Any, monkeypatch: Any) -> None:
    whole = attention.packed_attention

    def cut(module: Any, query: Any, key: Any, value: Any, mask: Any = None, **more: Any) -> Any:
        return whole(module, query, key.detach(), value, mask, **more)

    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, PACKED_ATTENTION, cut)
    assert pick_layout(llama, "auto", "it") == "padded"


def test_a_model_whose_code_takes_no_packing_is_padded(llama: Any, monkeypatch: Any) -> None:
    forward = llama.model.forward

    def strict(input_ids: Any = None, use_cache: Any = None) -> Any:
        return forward(input_ids=input_ids, use_cache=use_cache)

    monkeypatch.setattr(llama.model, "forward", strict)
    assert pick_layout(llama, "auto", "it") == "padded"


def test_padded_when_asked(llama: Any) -> None:
    assert pick_layout(llama, "padded", "it") == "padded"


def test_gradient_checkpointing_gives_the_same_gradients(llama: Any) -> None:
    """What a shared cache of keys and values would not allow."""
    llama.set_attn_implementation(PACKED_ATTENTION)
    plain = in_layout(llama, "packed", 10**9)
    llama.gradient_checkpointing_enable({"use_reentrant": False})
    llama.train()
    assert_same(plain, in_layout(llama, "packed", 10**9))


def test_responses_attend_together_where_that_computes_little_more() -> None:
    """Prompt 192, responses of 64: two compute 128 * 320 of 2 * 64 * 256 needed (1.25 times), eight 2.75 times."""
    like = torch.zeros(1)
    (_, pair) = Packing((Span(0, 192, (64, 64)),)).blocks(None, like)
    assert (pair.queries, pair.keys) == (slice(192, 320), (slice(0, 320),))
    (_, *group) = Packing((Span(0, 192, (64,) * 8),)).blocks(None, like)
    assert [block.queries for block in group] == [slice(at, at + 64) for at in range(192, 704, 64)]
    assert group[1].keys == (slice(0, 192), slice(256, 320))


def test_a_window_counts_positions_and_not_places_in_the_row() -> None:
    """Prompt of 3, responses of 2 and 2, window 3: the second response's first token is at position 3, not 5."""
    (prompt, responses) = Packing((Span(0, 3, (2, 2)),)).blocks(3, torch.zeros(1))
    assert prompt.mask is None
    assert responses.mask is not None
    #       p0 p1 p2 a0 a1 b0 b1
    want = [
        [0, 1, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 1, 0, 0],
        [0, 1, 1, 0, 0, 1, 0],
        [0, 0, 1, 0, 0, 1, 1],
    ]
    assert (responses.mask == 0).int().tolist() == want
