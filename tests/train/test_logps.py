"""Log-probabilities and scores: equal to the plain full-vocabulary computation, whatever the chunks and the layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from prefdata.train.batches import Example, collate, micro_batches
from prefdata.train.head import Head, head_logps
from prefdata.train.logps import end_scores, response_logps, sum_responses


def example(prompt: int, *responses: int, seed: int = 0) -> Example:
    draw = np.random.default_rng(seed)
    ids = [draw.integers(4, 260, length).astype(np.int32) for length in (prompt, *responses)]
    return Example(ids[0], tuple(ids[1:]))


EXAMPLES = [example(5, 3, 9, seed=1), example(12, 1, 2, seed=2), example(1, 20, 4, seed=3), example(30, 7, 7, seed=4)]


@pytest.fixture(scope="module")
def policy(tiny_policy: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_policy).eval()


@pytest.fixture(scope="module")
def reward(tiny_reward_model: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(tiny_reward_model).eval()


def plain(model: Any, prompt: np.ndarray, response: np.ndarray) -> torch.Tensor:
    """log p(response | prompt), one row alone, from all logits in float64."""
    ids = torch.tensor(np.concatenate([prompt, response])).long()
    table = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
    return sum(table[place - 1, ids[place]] for place in range(len(prompt), len(ids)))


def test_equal_to_the_whole_vocabulary_row_by_row(policy: Any) -> None:
    got = response_logps(policy, collate(EXAMPLES, np.arange(4)))
    want = torch.stack([torch.stack([plain(policy, e.prompt, r) for r in e.responses]) for e in EXAMPLES])
    assert got.sums.shape == (4, 2)
    assert torch.allclose(got.sums.double(), want, atol=1e-4, rtol=1e-6)


def test_only_trained_tokens_count(policy: Any) -> None:
    """A masked response's log-probability is that of its marked tokens alone: here the second and the third."""
    whole = example(5, 4)
    mask = np.array([False, True, True, False])
    got = response_logps(policy, collate([Example(whole.prompt, whole.responses, (mask,))], np.arange(1)))
    first = plain(policy, whole.prompt, whole.responses[0][:1])
    third = plain(policy, whole.prompt, whole.responses[0][:3])
    assert got.sums.item() == pytest.approx((third - first).item(), abs=1e-5)
    assert (got.position.tolist(), got.row.tolist(), got.counts.tolist()) == ([1, 2], [0, 0], [[2]])


def test_the_first_token_of_an_empty_prompt_is_not_predicted(policy: Any) -> None:
    response = example(1, 5).responses[0]
    got = response_logps(policy, collate([Example(response[:0], (response,))], np.arange(1)))
    assert got.sums.item() == pytest.approx(plain(policy, response[:1], response[1:]).item(), abs=1e-5)


def test_each_token_has_its_response_and_its_place_there(policy: Any) -> None:
    """What losses over tokens (LD-DPO, WPO) read: the tokens of a row are those of the response, in order."""
    got = response_logps(policy, collate(EXAMPLES, np.arange(4)))
    for row in range(8):
        own = got.row == row
        response = EXAMPLES[row // 2].responses[row % 2]
        assert got.position[own].tolist() == list(range(len(response)))
        want = plain(policy, EXAMPLES[row // 2].prompt, response[:1]).item()
        assert got.tokens[own][0].item() == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize("chunk", [1, 260, 260 * 7, 10**9])
def test_chunks_change_neither_values_nor_gradients(policy: Any, chunk: int) -> None:
    def run(elements: int) -> tuple[torch.Tensor, torch.Tensor]:
        policy.zero_grad()
        values = response_logps(policy, collate(EXAMPLES, np.arange(4)), chunk_elements=elements).sums
        values.square().sum().backward()
        return values.detach(), policy.lm_head.weight.grad.clone()

    (values, grads), (want, want_grads) = run(chunk), run(10**9)
    assert torch.allclose(values, want, atol=1e-5)
    assert torch.allclose(grads, want_grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backward", [False, True])
def test_no_tensor_of_all_positions_and_the_vocabulary(policy: Any, backward: bool) -> None:
    """Neither forward nor backward makes a tensor as large as the logits of two chunks."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            made = function(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor):
                largest = max(largest, made.numel())
            return made

    hidden = torch.randn(500, 64, requires_grad=True)
    head = Head(torch.nn.Linear(64, 260, bias=False))
    with Sizes():
        tokens, _ = head_logps(head, hidden, torch.arange(500) % 260, 260 * 70)
        if backward:
            tokens.sum().backward()
    assert largest < 260 * 140


@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.25, None), (1.0, 2.0), (0.5, 3.0)])
@pytest.mark.parametrize("rows", [2, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_gradcheck_of_the_head(scale: float, cap: float | None, rows: int, bias: bool) -> None:
    """By hidden states, weights and bias, with what Cohere scales and Gemma caps; along random directions."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 5, bias=bias).double()
    layer.weight.data.mul_(3)
    head = Head(layer, scale, cap)
    hidden = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def run() -> torch.Tensor:
        return head_logps(head, hidden, torch.tensor([0, 4, 2, 1]), 5 * rows)[0]

    mix = torch.randn(4, dtype=torch.float64)
    parts = [hidden, *layer.parameters()]
    for part, slope in zip(parts, torch.autograd.grad(run() @ mix, parts), strict=True):
        direction, at = torch.randn_like(part), part.data.clone()
        ends = []
        for step in (1e-5, -1e-5):
            part.data = at + step * direction
            ends.append(float((run() @ mix).detach()))
        part.data = at
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float((slope * direction).sum()), rel=1e-6, abs=1e-8)
    logits = scale * layer(hidden)
    want = (logits if cap is None else cap * torch.tanh(logits / cap)).log_softmax(-1)
    assert torch.allclose(run(), want[range(4), [0, 4, 2, 1]], atol=1e-6)


def test_a_head_that_is_more_than_a_layer_is_called_as_it_is() -> None:
    """An adapter on the head, say: its own forward decides."""
    torch.manual_seed(0)

    class Adapted(torch.nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(hidden)

    layer, hidden, targets = Adapted(3, 5), torch.randn(4, 3), torch.tensor([0, 4, 2, 1])
    got, entropies = head_logps(Head(layer), hidden, targets, 10, entropies=True)
    want = (2 * (hidden @ layer.weight.T + layer.bias)).log_softmax(-1)
    assert torch.allclose(got, want[range(4), targets], atol=1e-6)
    assert entropies is not None
    assert torch.allclose(entropies, -(want.exp() * want).sum(-1), atol=1e-5)
    got.sum().backward()
    assert layer.weight.grad is not None


def test_entropies_only_when_asked_and_right(policy: Any) -> None:
    batch = collate(EXAMPLES, np.arange(4))
    assert response_logps(policy, batch).entropies is None
    got = response_logps(policy, batch, entropies=True, chunk_elements=260 * 7).entropies
    assert got is not None
    first = EXAMPLES[0]
    table = policy(input_ids=torch.tensor(first.prompt[None]).long()).logits[0, -1].log_softmax(-1)
    assert got[0].item() == pytest.approx(-(table.exp() * table).sum().item(), abs=1e-5)
    assert not got.requires_grad
    assert sum_responses(batch, got).shape == (4, 2)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_neighbours_and_padding_do_not_matter(policy: Any, reward: Any, layout: Any, monkeypatch: Any) -> None:
    from prefdata.train.attention import PACKED_ATTENTION

    def logps(model: Any, batch: Any) -> torch.Tensor:
        return response_logps(model, batch).sums

    for compute, model in ((logps, policy), (end_scores, reward)):
        monkeypatch.setattr(model.config, "_attn_implementation", PACKED_ATTENTION if layout == "packed" else "sdpa")
        together = compute(model, collate(EXAMPLES, np.arange(4), layout))
        backwards = compute(model, collate(EXAMPLES, np.arange(4)[::-1], layout))
        alone = torch.cat([compute(model, collate(EXAMPLES, np.array([i]), layout)) for i in range(4)])
        assert torch.allclose(together, alone, atol=1e-5)
        assert torch.allclose(together.flip(0), backwards, atol=1e-5)


def test_scores_are_read_at_the_last_token_even_if_it_is_the_padding_token(reward: Any) -> None:
    """Where padding is the end token, a comparison of ids finds the token before the end."""
    ends_with_pad = Example(np.array([7, 8], np.int32), (np.array([9, 0], np.int32), np.array([9], np.int32)))
    got = end_scores(reward, collate([ends_with_pad], np.arange(1)))[0, :, 0]
    hidden = reward.model(input_ids=torch.tensor([[7, 8, 9, 0]])).last_hidden_state
    assert torch.allclose(got, reward.score(hidden[0, [3, 2]])[:, 0], atol=1e-6)


def test_scores_equal_transformers(reward: Any) -> None:
    got = end_scores(reward, collate(EXAMPLES, np.arange(4)))
    for i, e in enumerate(EXAMPLES):
        for k, response in enumerate(e.responses):
            ids = torch.tensor(np.concatenate([e.prompt, response])).long()[None]
            assert got[i, k].item() == pytest.approx(reward(input_ids=ids).logits.item(), abs=1e-5)


def test_scores_keep_their_digits_in_bfloat16(reward: Any) -> None:
    """A head in bfloat16 has 8 bits: 320 responses would share some 200 scores, as ties that are none."""
    many = [example(5, 4, seed=seed) for seed in range(320)]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        scores = torch.cat([end_scores(reward, collate(many, np.arange(at, at + 32))) for at in range(0, 320, 32)])
    assert scores.dtype == torch.float32
    assert len(set(scores.flatten().tolist())) >= 318


def test_a_response_that_is_not_there_has_no_score_and_no_logp(policy: Any, reward: Any) -> None:
    batch = collate([example(5, 3, 4, 2), example(6, 2)], np.arange(2))
    assert batch.present.tolist() == [[True, True, True], [True, False, False]]
    assert batch.counts.tolist() == [[3, 4, 2], [2, 0, 0]]
    assert response_logps(policy, batch).sums[1, 1:].tolist() == [0, 0]
    assert end_scores(reward, batch)[1, 1:].flatten().tolist() == [0, 0]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_micro_batches_hold_every_example_once_within_the_budget(layout: Any) -> None:
    examples = [example(1 + i % 13, 1 + i % 7, 1 + i % 5) for i in range(50)]
    batches = list(micro_batches(examples, range(50), 100, layout))
    assert sorted(i for batch in batches for i in batch.index) == list(range(50))
    assert all(batch.input_ids.numel() <= 100 for batch in batches)
    assert len(batches) < (12 if layout == "packed" else 15)  # not one by one: 50 examples of at most 40 tokens


def test_packed_batches_hold_no_padding_and_each_prompt_once() -> None:
    examples = [example(9, 2, 3), example(4, 5)]
    batch = collate(examples, np.arange(2), "packed")
    assert batch.input_ids.shape == (1, 9 + 2 + 3 + 4 + 5)
    assert batch.position_ids is not None
    assert batch.position_ids[0].tolist() == [*range(9), 9, 10, 9, 10, 11, *range(4), 4, 5, 6, 7, 8]


def test_an_example_larger_than_the_budget_stands_alone() -> None:
    examples = [example(50, 50, 50), example(1, 1, 1)]
    assert sorted(len(batch.index) for batch in micro_batches(examples, [0, 1], 20)) == [1, 1]
