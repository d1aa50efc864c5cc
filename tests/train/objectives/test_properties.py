"""What holds of every loss: gradients, values at the reference, absent responses, order, and far-out numbers."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from loss_values import losses, objective, table

from prefdata.train.objectives.catalog import LOSSES
from prefdata.train.objectives.options import DIVERGENCES
from prefdata.train.objectives.registry import Loss
from prefdata.train.objectives.values import Policy, Scored

ALL = [pytest.param(loss, id=f"{loss.command}-{loss.name}") for loss in LOSSES.losses]
POLICY = [pytest.param(loss, id=f"{loss.command}-{loss.name}") for loss in LOSSES.losses if loss.command != "rm"]
REGULARIZED = ("nll_weight", "reg_weight", "sft_weight")


def width(loss: Loss) -> int:
    """Responses of an example: for KTO the mismatched one too."""
    return {"demonstrations": 1, "pairs": 2, "groups": 4, "unpaired": 2, "rated": 3}[loss.data]


def drawn(loss: Loss, examples: int = 5, seed: int = 0) -> Policy | Scored:
    """Values of a loss: random ones, none of which lies on the edge of a hinge."""
    draw = torch.Generator().manual_seed(seed)
    k = width(loss)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    common = {
        "counts": torch.randint(3, 9, (examples, k), generator=draw).double(),
        "label": torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0], dtype=torch.float64)[:examples],
        "ratings": normal(examples, k, 1),
        "margin": normal(examples).abs(),
    }
    if loss.command == "rm":
        heads = 3 if loss.name == "ensemble" else 1
        more = {"draws": torch.randint(0, 3, (examples, heads), generator=draw).double()}
        return Scored.of(normal(examples, k, heads), length_scores=normal(examples, k), **more, **common)
    logps = -10 + 2 * normal(examples, k)
    return Policy.of(
        logps,
        logps + normal(examples, k),
        kls=normal(examples, k).abs(),
        off_policy=-normal(examples, k).abs(),
        **common,
    )


def of_leaf(loss: Loss, values: Policy | Scored, leaf: torch.Tensor) -> Policy | Scored:
    return replace(values, **{"scores" if loss.command == "rm" else "logps": leaf})


def leaf_of(values: Policy | Scored) -> torch.Tensor:
    return (values.scores if isinstance(values, Scored) else values.logps).clone()


def variants(loss: Loss) -> list[dict[str, Any]]:
    """The defaults, and each option at a value that does something."""
    changes: dict[str, list[Any]] = {
        "label_smoothing": [0.2],
        "f_divergence": list(DIVERGENCES[1:]),
        "wpo": [True],
        "nll_weight": [0.7],
        "center_rewards": [0.1],
        "safety_weight": [0.5],
        "use_margin": [True],
        "regularizer": ["kl"],
    }
    return [{}, *({name: value} for name in loss.settings for value in changes.get(name, []))]


@pytest.mark.parametrize("loss", ALL)
def test_gradients_equal_finite_differences(loss: Loss) -> None:
    """With respect to log-probabilities or scores; what is taken without gradient (KTO's KL, BCO's shift, WPO's
    weights) is held fixed, as its paper says."""
    values = drawn(loss)
    for settings in variants(loss):
        if loss.name == "bradley-terry" and "safety_weight" in settings:
            values = replace(values, ratings=(values.ratings > 0).double())

        def total(leaf: torch.Tensor, values: Any = values, settings: dict[str, Any] = settings) -> torch.Tensor:
            return losses(loss.command, loss.name, of_leaf(loss, values, leaf), **settings)

        leaf = leaf_of(values).requires_grad_()
        if loss.name in ("kto", "bco") and loss.command == "kto":
            analytic = torch.autograd.grad(total(leaf).sum(), leaf)[0]
            assert torch.allclose(analytic, with_fixed_baseline(loss, values, leaf.detach()), atol=1e-7), settings
        else:
            assert torch.autograd.gradcheck(total, (leaf,)), settings


def with_fixed_baseline(loss: Loss, values: Policy | Scored, at: torch.Tensor, step: float = 1e-6) -> torch.Tensor:
    """Central differences of KTO's and BCO's equations with the number that is no function of the policy held fixed."""
    assert isinstance(values, Policy)
    ratios, good = at - values.ref_logps, values.label > 0.5
    rewards = 0.1 * ratios[:, 0]
    kl = max(0.0, float(ratios[:, 1].mean()))
    shift = float(rewards[good].mean() + rewards[~good].mean()) / 2

    def by_hand(logps: torch.Tensor) -> float:
        d = 0.1 * (logps - values.ref_logps)[:, 0]
        z = (
            torch.where(good, d - 0.1 * kl, 0.1 * kl - d)
            if loss.name == "kto"
            else torch.where(good, d - shift, shift - d)
        )
        return float((1 - torch.sigmoid(z)).sum() if loss.name == "kto" else -torch.nn.functional.logsigmoid(z).sum())

    found = torch.zeros_like(at)
    for place in range(at.numel()):
        moved = torch.zeros_like(at).view(-1)
        moved[place] = step
        moved = moved.view_as(at)
        found.view(-1)[place] = (by_hand(at + moved) - by_hand(at - moved)) / (2 * step)
    return found


AT_REFERENCE = {
    "sigmoid": math.log(2), "sigmoid-mean": math.log(2), "robust": math.log(2), "ipo-sum": 25.0, "ipo-mean": 25.0,
    "hinge": 1.0, "nca": 2 * math.log(2), "bco-pair": 2 * math.log(2), "sppo": 50.0, "apo-zero": 1.0, "apo-down": 1.0,
    "discopop": (math.log(2) + 1) / 2, "dpop": math.log(2), "aot": math.log(2), "aot-unpaired": math.log(2),
    "plackett-luce": math.log(24), "kto": 0.5, "bco": math.log(2),
    "exo": -math.log(2) - (math.log(1e-3) + math.log(1 - 1e-3)) / 2,
}  # fmt: skip


@pytest.mark.parametrize("loss", [one for one in POLICY if one.values[0].reference])
def test_the_first_step_is_known(loss: Loss) -> None:
    """At the reference, whatever the data: ln 2, 1, 1 / (4 beta^2) = 25, 2 / (4 beta^2), log 4! for four responses."""
    values = drawn(loss)
    assert isinstance(values, Policy)
    at = replace(values, ref_logps=values.logps)
    expected = 0.5 if (loss.command, loss.name) == ("kto", "apo-zero") else AT_REFERENCE[loss.name]
    assert losses(loss.command, loss.name, at).tolist() == pytest.approx([expected] * 5, abs=1e-12)


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_with_flipped_labels_the_first_step_is_known_too(smoothing: float) -> None:
    values = drawn(LOSSES.find("dpo", "sigmoid"))
    at = replace(values, ref_logps=values.logps)
    for name, expected in (("sigmoid", math.log(2)), ("robust", math.log(2)), ("hinge", 1.0), ("ipo-sum", 25.0)):
        found = losses("dpo", name, at, label_smoothing=smoothing).tolist()
        assert found == pytest.approx([expected] * 5, abs=1e-12), name


@pytest.mark.parametrize("loss", [one for one in ALL if not one.values[0].coupled])
def test_a_loss_of_one_example_does_not_depend_on_the_others(loss: Loss) -> None:
    values, alone = drawn(loss), drawn(loss)
    whole = losses(loss.command, loss.name, values)
    for place in range(5):
        one = at_places(alone, [place])
        assert losses(loss.command, loss.name, one).item() == pytest.approx(whole[place].item(), abs=1e-12)


@pytest.mark.parametrize("loss", [one for one in ALL if one.values[0].coupled])
def test_a_coupled_loss_depends_on_the_batch_and_not_on_its_order(loss: Loss) -> None:
    values = drawn(loss)
    total = losses(loss.command, loss.name, values).sum().item()
    turned = losses(loss.command, loss.name, at_places(values, [3, 1, 4, 0, 2])).sum().item()
    assert turned == pytest.approx(total, abs=1e-12)
    parts = [losses(loss.command, loss.name, at_places(values, half)).sum().item() for half in ([0, 1], [2, 3, 4])]
    assert sum(parts) != pytest.approx(total, abs=1e-6)


def at_places(values: Any, places: list[int]) -> Any:
    picked = {f.name: getattr(values, f.name) for f in fields(values)}
    return replace(values, **{name: value[places] for name, value in picked.items() if value is not None})


@pytest.mark.parametrize("loss", [one for one in ALL if one.values[0].data == "groups"])
def test_responses_may_come_in_any_order(loss: Loss) -> None:
    values = drawn(loss)
    turned = replace(
        values,
        **{f.name: getattr(values, f.name)[:, [2, 0, 3, 1]] for f in fields(values) if f.name in PER_RESPONSE(values)},
    )
    expected = losses(loss.command, loss.name, values).tolist()
    assert losses(loss.command, loss.name, turned).tolist() == pytest.approx(expected, abs=1e-12)


def PER_RESPONSE(values: Any) -> list[str]:
    shape = values.counts.shape
    return [f.name for f in fields(values) if (v := getattr(values, f.name)) is not None and v.shape[:2] == shape]


@pytest.mark.parametrize("loss", [one for one in ALL if one.values[0].data in ("groups", "rated")])
def test_absent_responses_count_nothing(loss: Loss) -> None:
    """A group of three in a batch whose largest has four, with whatever stands in the fourth place."""
    values = drawn(loss)
    short = replace(values, **{name: getattr(values, name)[:, :-1] for name in PER_RESPONSE(values)})
    there = values.present.clone()
    there[:, -1] = False
    leaf = leaf_of(values).requires_grad_()
    for filler in (0.0, math.nan):
        ratings = values.ratings.clone()
        ratings[:, -1] = filler
        padded = replace(of_leaf(loss, values, leaf), present=there, ratings=ratings)
        found = losses(loss.command, loss.name, padded)
        assert found.tolist() == pytest.approx(losses(loss.command, loss.name, short).tolist(), abs=1e-12)
        (gradient,) = torch.autograd.grad(found.sum(), leaf)
        assert gradient.isfinite().all()
        assert (gradient[:, -1] == 0).all()


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_far_out_numbers_give_no_nan(loss: Loss, size: float) -> None:
    values = drawn(loss, examples=1)
    leaf = leaf_of(values)
    leaf[:, 0], leaf[:, 1:] = size, -size
    leaf = (leaf - (0 if loss.command == "rm" else 3e4)).float().requires_grad_()
    values = replace(
        values,
        **{
            f.name: v.float()
            for f in fields(values)
            if (v := getattr(values, f.name)) is not None and v.is_floating_point()
        },
    )
    found = losses(loss.command, loss.name, of_leaf(loss, values, leaf)).sum()
    assert not found.isnan()
    (gradient,) = torch.autograd.grad(found, leaf, allow_unused=True)
    assert not gradient.isnan().any()


@pytest.mark.parametrize("loss", ALL)
def test_settings_are_those_of_the_function(loss: Loss) -> None:
    """Every setting is an argument of the loss or an option, and each argument has a default."""
    from inspect import signature

    from prefdata.train.objectives.registry import OPTIONS

    arguments = [name for name in signature(loss.compute()).parameters if name != "v"]
    assert set(arguments) <= set(loss.settings)
    read_before = {"use_margin", "attributes", "members"}  # while values are made
    assert set(loss.settings) - set(arguments) <= set(OPTIONS) | read_before
    assert loss.equation
    assert loss.source
    assert len(loss.line) <= 60  # a line of help


def test_the_dpo_gradient_weight() -> None:
    """dL/dh = -beta s(-beta h): at h = 2 it is -.1 * .450166; hinge 0 or -beta; IPO 2 (h - 1 / (2 beta))."""
    for name, expected in (("sigmoid", -0.0450166), ("hinge", -0.1), ("ipo-sum", 2 * (2 - 5))):
        logps = table([1.0, -1.0]).requires_grad_()
        losses("dpo", name, Policy.of(logps, table([0.0, 0.0]))).backward()
        assert logps.grad is not None
        assert logps.grad[0].tolist() == pytest.approx([expected, -expected], abs=1e-7)
    beyond = table([6.0, -6.0]).requires_grad_()
    losses("dpo", "hinge", Policy.of(beyond, table([0.0, 0.0]))).backward()
    assert beyond.grad is not None
    assert beyond.grad.abs().max().item() == 0.0


def test_the_kto_gradient_vanishes_for_very_good_and_very_bad_responses() -> None:
    """dL/dd = -beta s(1 - s): at d = 0 it is -.025, at +-200 about 0."""
    for d, expected in ((0.0, -0.025), (200.0, 0.0), (-200.0, 0.0)):
        logps = table([d]).requires_grad_()
        label = torch.ones(1, dtype=torch.float64)
        losses("kto", "kto", Policy.of(logps, table([0.0]), label=label)).backward()
        assert logps.grad is not None
        assert logps.grad.item() == pytest.approx(expected, abs=1e-8)


def test_a_length_expert_that_explains_the_label_leaves_nothing_to_learn() -> None:
    scores = torch.zeros(1, 2, 1, dtype=torch.float64, requires_grad=True)
    v = Scored.of(scores, length_scores=table([50.0, 0.0]))
    losses("rm", "poe-length", v).backward()
    assert scores.grad is not None
    assert scores.grad.abs().max().item() < 1e-20


def test_robust_dpo_is_unbiased() -> None:
    """(1 - e) L(h) + e L(-h) is DPO's loss, exactly, for any h."""
    h = torch.linspace(-30, 30, 13, dtype=torch.float64)
    right = Policy.of(torch.stack([h, 0 * h], 1), torch.zeros(13, 2, dtype=torch.float64))
    flipped = replace(right, logps=right.logps.flip(1))
    mixed = 0.8 * losses("dpo", "robust", right, label_smoothing=0.2)
    mixed = mixed + 0.2 * losses("dpo", "robust", flipped, label_smoothing=0.2)
    assert mixed.tolist() == pytest.approx(losses("dpo", "sigmoid", right).tolist(), abs=1e-12)


def test_objectives_report_rewards_of_every_kind() -> None:
    for loss in LOSSES.losses:
        _, sums = objective(loss.command, loss.name).loss(drawn(loss))
        names = {"demonstrations": None, "pairs": "rewards/chosen", "groups": "rewards/best", "rated": "scores"}
        expected = names.get(loss.data, "rewards/desirable")
        assert expected is None or expected in sums, loss.name
