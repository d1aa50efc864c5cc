"""Every loss against values worked out by hand, and its gradient against finite differences."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefdata.specs.train import DpoSpec, RmSpec, SftSpec
from prefdata.train.losses import LOSSES, bradley_terry, dpo_sigmoid, nll


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_registry_holds_what_specs_can_name() -> None:
    named = [get_args(spec.model_fields["loss"].annotation) for spec in (SftSpec, RmSpec, DpoSpec)]
    assert sorted(name for names in named for name in names) == sorted(LOSSES)


def test_nll() -> None:
    """Two answers with log-probabilities -3 and 0: -log p is 3 and 0."""
    assert nll(vector(-3.0, 0.0)).tolist() == [3.0, 0.0]


def test_bradley_terry_margins() -> None:
    """Scores 1.2 and 0.2, gap 1: -log sigmoid(1 - m) = log(1 + exp(m - 1)).

    m = 0: log(1 + 0.367879) = 0.313262; m = 1/3: log(1 + 0.513417) = 0.414370; m = 3: log(1 + 7.389056) = 2.126928.
    """
    chosen, rejected = vector(1.2, 1.2, 1.2), vector(0.2, 0.2, 0.2)
    values = bradley_terry(chosen, rejected, vector(0.0, 1 / 3, 3.0))
    assert values.tolist() == pytest.approx([0.313262, 0.414370, 2.126928], abs=1e-6)
    assert bradley_terry(chosen, rejected)[0].item() == pytest.approx(0.313262, abs=1e-6)


def test_bradley_terry_centring() -> None:
    """Scores 1.2 and 0.2 sum to 1.4, so that a weight of 0.01 adds 0.01 * 1.96 = 0.0196."""
    assert bradley_terry(vector(1.2), vector(0.2), None, 0.01).item() == pytest.approx(0.313262 + 0.0196, abs=1e-6)


def test_dpo_and_cdpo() -> None:
    """beta 0.1 and log-ratios +1 and -1: h = 2, z = 0.2.

    -log sigmoid(0.2) = log(1 + exp(-0.2)) = 0.598139; flipped, log(1 + exp(0.2)) = 0.798139. With e = 0.1:
    0.9 * 0.598139 + 0.1 * 0.798139 = 0.618139.
    """
    assert dpo_sigmoid(vector(1.0), vector(-1.0), 0.1).item() == pytest.approx(0.598139, abs=1e-6)
    assert dpo_sigmoid(vector(-1.0), vector(1.0), 0.1).item() == pytest.approx(0.798139, abs=1e-6)
    assert dpo_sigmoid(vector(1.0), vector(-1.0), 0.1, 0.1).item() == pytest.approx(0.618139, abs=1e-6)


def test_dpo_gradient_weight() -> None:
    """dL/dh = -beta * sigmoid(-beta h) = -0.1 * 0.450166 = -0.0450166 at h = 2."""
    chosen = vector(1.0).requires_grad_()
    dpo_sigmoid(chosen, vector(-1.0), 0.1).backward()
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.0450166, abs=1e-7)


@pytest.mark.parametrize(("smoothing", "best"), [(0.1, math.log(9) / 0.1), (0.2, math.log(4) / 0.1)])
def test_cdpo_is_stationary_where_sigmoid_is_one_minus_e(smoothing: float, best: float) -> None:
    """h* = log((1 - e) / e) / beta."""
    h = vector(best).requires_grad_()
    dpo_sigmoid(h, vector(0.0), 0.1, smoothing).backward()
    assert h.grad is not None
    assert abs(h.grad.item()) < 1e-15


def labels(*probabilities: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor([[p, 1 - p] for p in probabilities], dtype=dtype)


def test_soft_labels() -> None:
    """As above, beta h = 0.2, each pair with its own p: 1 gives 0.598139, 0 the flipped 0.798139, 0.9 0.618139.

    Bradley-Terry with gap 1 and p = 0.75: 0.75 * 0.313262 + 0.25 * 1.313262 = 0.563262.
    """
    ones = vector(1.0, 1.0, 1.0)
    values = dpo_sigmoid(ones, -ones, 0.1, labels=labels(1.0, 0.0, 0.9))
    assert values.tolist() == pytest.approx([0.598139, 0.798139, 0.618139], abs=1e-6)
    assert bradley_terry(vector(1.2), vector(0.2), labels=labels(0.75)).item() == pytest.approx(0.563262, abs=1e-6)


@pytest.mark.parametrize("probability", [0.9, 0.6, 0.25])
def test_soft_labels_are_learned(probability: float) -> None:
    """The minimum lies at sigmoid(z) = p, below one half too."""
    gap = vector(math.log(probability / (1 - probability))).requires_grad_()
    bradley_terry(gap, vector(0.0), labels=labels(probability)).backward()
    assert gap.grad is not None
    assert abs(gap.grad.item()) < 1e-15


@given(st.floats(0, 0.49), st.floats(-50, 50))
def test_one_probability_for_all_is_label_smoothing_to_the_bit(smoothing: float, z: float) -> None:
    chosen, rejected = torch.tensor([z]), torch.tensor([0.3])
    soft = dpo_sigmoid(chosen, rejected, 0.1, labels=labels(1 - smoothing, dtype=torch.float32))
    assert torch.equal(soft, dpo_sigmoid(chosen, rejected, 0.1, smoothing))


@given(st.floats(0.01, 5), st.floats(0, 0.49))
def test_at_the_reference_every_dpo_loss_is_ln_2(beta: float, smoothing: float) -> None:
    assert dpo_sigmoid(vector(0.0), vector(0.0), beta, smoothing).item() == pytest.approx(math.log(2), abs=1e-12)


def test_losses_stay_finite_far_out() -> None:
    far = torch.tensor([1e4, -1e4])
    for values in (bradley_terry(far, -far), dpo_sigmoid(far, -far, 1.0, 0.1)):
        assert values.isfinite().all()


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b: nll(a) + nll(b),
        lambda a, b: bradley_terry(a, b, vector(0.5, 0.0, 1.0), 0.01),
        lambda a, b: dpo_sigmoid(a, b, 0.3),
        lambda a, b: dpo_sigmoid(a, b, 0.3, 0.2),
        lambda a, b: dpo_sigmoid(a, b, 0.3, labels=labels(0.9, 0.5, 0.1)),
    ],
    ids=["nll", "bradley-terry", "sigmoid", "sigmoid with smoothing", "sigmoid with soft labels"],
)
def test_gradients_equal_finite_differences(loss) -> None:
    values = (vector(0.3, -2.0, 4.0).requires_grad_(), vector(-1.0, 0.5, 3.0).requires_grad_())
    assert torch.autograd.gradcheck(loss, values)
