"""Log-probabilities and scores: equal to the plain full-vocabulary computation, whatever the chunks and the padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from prefdata.train.batches import Tree, collate, micro_batches
from prefdata.train.logps import end_scores, sequence_logps, token_logps


def tree(prompt: int, *responses: int, seed: int = 0) -> Tree:
    draw = np.random.default_rng(seed)
    ids = [draw.integers(4, 260, length).astype(np.int32) for length in (prompt, *responses)]
    return Tree(ids[0], tuple(ids[1:]))


TREES = [tree(5, 3, 9, seed=1), tree(12, 1, 2, seed=2), tree(1, 20, 4, seed=3), tree(30, 7, 7, seed=4)]


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
    got = sequence_logps(policy, collate(TREES, np.arange(4)))
    want = torch.stack([torch.stack([plain(policy, t.prompt, r) for r in t.responses]) for t in TREES])
    assert got.shape == (4, 2)
    assert torch.allclose(got.double(), want, atol=1e-4, rtol=1e-6)


def test_only_trained_tokens_count(policy: Any) -> None:
    """A masked response's log-probability is that of its marked tokens alone: here the second and the third."""
    whole = tree(5, 4)
    mask = np.array([False, True, True, False])
    got = sequence_logps(policy, collate([Tree(whole.prompt, whole.responses, (mask,))], np.arange(1)))
    first = plain(policy, whole.prompt, whole.responses[0][:1])
    third = plain(policy, whole.prompt, whole.responses[0][:3])
    assert got.item() == pytest.approx((third - first).item(), abs=1e-5)


def test_the_first_token_of_an_empty_prompt_is_not_predicted(policy: Any) -> None:
    response = tree(1, 5).responses[0]
    got = sequence_logps(policy, collate([Tree(response[:0], (response,))], np.arange(1)))
    assert got.item() == pytest.approx(plain(policy, response[:1], response[1:]).item(), abs=1e-5)


@pytest.mark.parametrize("chunk", [1, 260, 260 * 7, 10**9])
def test_chunks_change_neither_values_nor_gradients(policy: Any, chunk: int) -> None:
    def run(elements: int) -> tuple[torch.Tensor, torch.Tensor]:
        policy.zero_grad()
        values = sequence_logps(policy, collate(TREES, np.arange(4)), elements)
        values.square().sum().backward()
        return values.detach(), policy.lm_head.weight.grad.clone()

    (values, grads), (want, want_grads) = run(chunk), run(10**9)
    assert torch.allclose(values, want, atol=1e-5)
    assert torch.allclose(grads, want_grads, rtol=1e-4, atol=1e-4)


def test_no_tensor_of_all_positions_and_the_vocabulary(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    forward = policy.lm_head.forward
    monkeypatch.setattr(policy.lm_head, "forward", lambda h: sizes.append(len(h)) or forward(h))
    sequence_logps(policy, collate(TREES, np.arange(4)))
    assert sizes == [sum(t.trained_tokens for t in TREES)]


def test_gradcheck_of_the_head(policy: Any) -> None:
    head = torch.nn.Linear(3, 5, bias=False).double()
    model = policy.__class__.__new__(policy.__class__)
    torch.nn.Module.__init__(model)
    model.config, model.lm_head = policy.config, head
    model.get_output_embeddings = lambda: head
    hidden = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    # float32 inside: the steps of the finite difference must be coarse.
    assert torch.autograd.gradcheck(
        lambda h: token_logps(model, h, torch.tensor([0, 4, 2, 1]), 10).double(), hidden, eps=1e-2, atol=1e-3
    )


def test_neighbours_and_padding_do_not_matter(policy: Any, reward: Any) -> None:
    for compute, model in ((sequence_logps, policy), (end_scores, reward)):
        together = compute(model, collate(TREES, np.arange(4)))
        backwards = compute(model, collate(TREES, np.arange(4)[::-1]))
        alone = torch.cat([compute(model, collate(TREES, np.array([i]))) for i in range(4)])
        assert torch.allclose(together, alone, atol=1e-5)
        assert torch.allclose(together.flip(0), backwards, atol=1e-5)


def test_scores_are_read_at_the_last_token_even_if_it_is_the_padding_token(reward: Any) -> None:
    """Where padding is the end token, a comparison of ids finds the token before the end."""
    ends_with_pad = Tree(np.array([7, 8], np.int32), (np.array([9, 0], np.int32), np.array([9], np.int32)))
    got = end_scores(reward, collate([ends_with_pad], np.arange(1)))[0]
    hidden = reward.model(input_ids=torch.tensor([[7, 8, 9, 0]])).last_hidden_state
    assert torch.allclose(got, reward.score(hidden[0, [3, 2]])[:, 0], atol=1e-6)


def test_scores_equal_transformers(reward: Any) -> None:
    got = end_scores(reward, collate(TREES, np.arange(4)))
    for i, t in enumerate(TREES):
        for k, response in enumerate(t.responses):
            ids = torch.tensor(np.concatenate([t.prompt, response])).long()[None]
            assert got[i, k].item() == pytest.approx(reward(input_ids=ids).logits.item(), abs=1e-5)


def test_micro_batches_hold_every_tree_once_within_the_budget() -> None:
    trees = [tree(1 + i % 13, 1 + i % 7, 1 + i % 5) for i in range(50)]
    batches = list(micro_batches(trees, range(50), 100))
    assert sorted(i for batch in batches for i in batch.index) == list(range(50))
    assert all(batch.tokens.numel() <= 100 for batch in batches)
    assert len(batches) < 15  # not one by one: 50 trees of at most 40 tokens


def test_a_tree_larger_than_the_budget_stands_alone() -> None:
    trees = [tree(50, 50, 50), tree(1, 1, 1)]
    assert sorted(len(batch.index) for batch in micro_batches(trees, [0, 1], 20)) == [1, 1]
