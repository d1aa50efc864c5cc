"""Every loss against values worked out by hand; `s` is the logistic function, `lsig` its logarithm.

lsig(.2) = -log(1 + exp(-.2)) = -.598139, lsig(-.2) = -.798139; lsig(.1) = -.644397, lsig(-.1) = -.744397;
s(.1) = .524979, s(-.1) = .475021, s(.2) = .549834.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_values import group, labels, losses, pair, scored, table, value

from prefdata.train.objectives.catalog import LOSSES
from prefdata.train.objectives.mixing import log1mexp
from prefdata.train.objectives.options import link, token_weights
from prefdata.train.objectives.values import Policy, Scored

LN2 = math.log(2)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        # c = 1, r = -1, h = 2, beta h = .2: -lsig(.2)
        ("sigmoid", {}, 0.598139),
        # .9 * .598139 + .1 * .798139
        ("sigmoid", {"label_smoothing": 0.1}, 0.618139),
        # (.9 * .598139 - .1 * .798139) / .8
        ("robust", {"label_smoothing": 0.1}, 0.573139),
        # (2 - 1 / .2)^2
        ("ipo-sum", {}, 9.0),
        # 1 - .2
        ("hinge", {}, 0.8),
        # .549834 * log(.549834 / .9) + .450166 * log(.450166 / .1) = -.270946 + .677250
        ("exo", {"label_smoothing": 0.1}, 0.406304),
        # -lsig(.1) - (lsig(-.1) + lsig(.1)) / 2 = .644397 + (.744397 + .644397) / 2
        ("nca", {}, 1.338793),
        # -lsig(.1) - lsig(.1)
        ("bco-pair", {}, 1.288793),
        # (1 - 5)^2 + (-1 + 5)^2
        ("sppo", {}, 32.0),
        # 1 - .524979 + .475021
        ("apo-zero", {}, 0.950042),
        # .524979 + 1 - .549834
        ("apo-down", {}, 0.975145),
        # z = .2, m = s(4) = .982014: .017986 * .598139 + .982014 * exp(-.2) = .010758 + .804005
        ("discopop", {}, 0.814763),
        # c > 0: the penalty is 0, and it is DPO with beta .3: -lsig(.6)
        ("dpop", {}, 0.437488),
        # one pair: the order statistics are itself
        ("aot", {}, 0.598139),
        ("aot-unpaired", {}, 0.598139),
        ("aot", {"label_smoothing": 0.1}, 0.618139),
    ],
)
def test_losses_of_log_ratios_plus_and_minus_one(name: str, settings: dict[str, Any], expected: float) -> None:
    assert value("dpo", name, pair(1.0, -1.0), **settings) == pytest.approx(expected, abs=1e-6)


def test_flipped_dpo() -> None:
    assert value("dpo", "sigmoid", pair(-1.0, 1.0)) == pytest.approx(0.798139, abs=1e-6)


def test_dpop_penalises_a_chosen_response_that_falls() -> None:
    """c = -1, r = -3: h = 2, less 50 * 1: -lsig(.3 * -48) = log(1 + exp(14.4)) = 14.4000006; penalty 0: -lsig(.6)."""
    assert value("dpo", "dpop", pair(-1.0, -3.0)) == pytest.approx(14.4000006, abs=1e-6)
    assert value("dpo", "dpop", pair(-1.0, -3.0), penalty=0.0) == pytest.approx(0.437488, abs=1e-6)


def test_length_normalised_losses() -> None:
    """c = 1 over 2 tokens, r = -1 over 4: .5 + .25 = .75.

    sigmoid-mean, beta 5: -lsig(3.75) = .023245. ipo-mean, beta .1: (.75 - 5)^2 = 18.0625.
    """
    v = pair(1.0, -1.0, counts=table([2.0, 4.0]))
    assert value("dpo", "sigmoid-mean", v) == pytest.approx(0.023245, abs=1e-6)
    assert value("dpo", "ipo-mean", v) == pytest.approx(18.0625, abs=1e-9)
    assert value("dpo", "ipo-sum", v) == pytest.approx(9.0, abs=1e-9)


def test_reference_free_losses() -> None:
    """A token: chosen -.5 (4 tokens), rejected -1 (2 tokens), so that both sum to -2.

    ORPO: log odds ratio = .5 - (log(1 - e^-.5) - log(1 - e^-1)) = .5 + .932752 - .458675 = .974077, -lsig = .320300;
    .1 of it and an NLL of .5 is .532030. SimPO, beta 2, gamma 1: 2 * .5 - 1 = 0: ln 2.
    CPO: equal sums, ln 2, and an NLL a token of .5. SLiC-HF: max(0, 1 - 0) + .1 * 2 = 1.2.
    """
    v = Policy.of(table([-2.0, -2.0]), counts=table([4.0, 2.0]))
    assert value("dpo", "orpo", v) == pytest.approx(0.532030, abs=1e-6)
    assert value("dpo", "orpo", v, nll_weight=0.0) == pytest.approx(0.0320300, abs=1e-6)
    assert value("dpo", "simpo", v) == pytest.approx(LN2, abs=1e-12)
    assert value("dpo", "cpo", v) == pytest.approx(LN2 + 0.5, abs=1e-12)
    assert value("dpo", "slic-hf", v) == pytest.approx(1.2, abs=1e-12)


def test_slic_hf_hinge() -> None:
    """delta 1: -12 against -12.3 lacks .7 of the margin, against -13.4 nothing."""
    assert value("dpo", "slic-hf", Policy.of(table([-12.0, -12.3])), reg_weight=0.0) == pytest.approx(0.7, abs=1e-9)
    assert value("dpo", "slic-hf", Policy.of(table([-12.0, -13.4])), reg_weight=0.0) == 0.0


def test_orpo_of_certain_responses_is_finite() -> None:
    """A log-probability of 0 has infinite odds; log(1 - exp(x)) is exact next to 0."""
    v = Policy.of(table([0.0, -1.0]).requires_grad_(), counts=table([1.0, 1.0]))
    found = losses("dpo", "orpo", v)
    assert found.isfinite().all()
    (gradient,) = torch.autograd.grad(found.sum(), v.logps)
    assert gradient.isfinite().all()
    assert log1mexp(table([0.0]))[0].item() == pytest.approx(math.log(1e-12), abs=1e-3)
    assert log1mexp(table([-1e-9]))[0].item() == pytest.approx(math.log(1e-9), abs=1e-8)
    assert log1mexp(table([-40.0]))[0].item() == pytest.approx(-math.exp(-40), rel=1e-9)


P, R = [-1.0, -0.5, -2.0], [0.3, 0.1, 0.2]


def test_rrhf() -> None:
    """Reward order r1 < r2 < r0. (worse, better): (1, 2) lacks -.5 + 2 = 1.5, (1, 0) -.5 + 1 = .5, (2, 0) 0: 2.0.

    The best is response 0. Of 3 tokens each, p are a third of log-probabilities -3, -1.5, -6, and its NLL is 3.
    """
    v = group([3 * p for p in P], R, counts=table([3.0, 3.0, 3.0]))
    assert value("dpo", "rrhf", v) == pytest.approx(2.0 + 3.0, abs=1e-9)
    assert value("dpo", "rrhf", v, sft_weight=0.0) == pytest.approx(2.0, abs=1e-9)
    assert value("dpo", "rrhf", v, rank_weight=0.0) == pytest.approx(3.0, abs=1e-9)
    assert value("dpo", "rrhf", v, length_power=0.0, sft_weight=0.0) == pytest.approx(6.0, abs=1e-9)


@settings(deadline=None)  # the machine may be busy
@given(st.floats(-5, 5))
def test_rrhf_ranks_are_those_of_differences(shift: float) -> None:
    """A constant added to all p changes nothing; ties contribute nothing; one response is plain SFT."""
    v, moved = group(P, R), group([p + shift for p in P], R)
    assert value("dpo", "rrhf", moved, sft_weight=0.0) == pytest.approx(value("dpo", "rrhf", v, sft_weight=0.0))
    assert value("dpo", "rrhf", group(P, [1.0, 1.0, 1.0]), sft_weight=0.0) == 0.0
    assert value("dpo", "rrhf", group([-7.0], [1.0])) == pytest.approx(7.0)


def test_rrhf_of_tied_best_responses_does_not_depend_on_their_order() -> None:
    assert value("dpo", "rrhf", group([-1.0, -3.0], [1.0, 1.0])) == pytest.approx(2.0)
    assert value("dpo", "rrhf", group([-3.0, -1.0], [1.0, 1.0])) == pytest.approx(2.0)


LOGPS, RATINGS = [-10.0, -9.0, -12.0], [0.9, 0.5, 0.1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # (0,1): 1 + 10 - 9 = 2; (0,2): 1 + 10 - 12 < 0; (1,2): 1 + 9 - 12 < 0; the mean of three
        ("slic-rank", 2 / 3),
        # (0,1): .4 + 10 - 9 = 1.4; (0,2): .8 + 10 - 12 < 0; (1,2): .4 + 9 - 12 < 0
        ("slic-margin", 1.4 / 3),
        # (0,1): 1 + 1 = 2; (0,2): 2 - 2 = 0; (1,2): 1 - 3 < 0; their sum
        ("slic-list", 2.0),
        # P ~ e^-1, 1, e^-3: -(.9 * .367879 + .5 + .1 * .049787) / 1.417666
        ("slic-reward", -0.589751),
    ],
)
def test_slic(name: str, expected: float) -> None:
    v = group(LOGPS, RATINGS, kls=table([0.25, 7.0, 7.0]))
    assert value("dpo", name, v, reg_weight=0.0) == pytest.approx(expected, abs=1e-6)
    # cross-entropy of the best response, 10, and its KL
    assert value("dpo", name, v, reg_weight=0.5) == pytest.approx(expected + 5.0, abs=1e-6)
    assert value("dpo", name, v, reg_weight=0.5, regularizer="kl") == pytest.approx(expected + 0.125, abs=1e-6)


def test_slic_of_two_responses() -> None:
    two = group(LOGPS[:2], RATINGS[:2])
    assert value("dpo", "slic-rank", two, reg_weight=0.0) == pytest.approx(2.0)
    assert value("dpo", "slic-margin", two, reg_weight=0.0) == pytest.approx(1.4)


def test_plackett_luce() -> None:
    """Values 2, 1, 0 in the right order: log(1 + e^-1 + e^-2) + log(1 + e^-1) = .407606 + .313262 = .720868.

    The policy's are log-ratios times beta. All responses equal: log 3! = 1.791759.
    """
    assert value("rm", "plackett-luce", scored([2.0, 1.0, 0.0], [9.0, 5.0, 1.0])) == pytest.approx(0.720868, abs=1e-6)
    v = Policy.of(table([0.0, -10.0, -20.0]), table([-20.0, -20.0, -20.0]), ratings=table([9.0, 5.0, 1.0])[..., None])
    assert value("dpo", "plackett-luce", v) == pytest.approx(0.720868, abs=1e-6)
    even = scored([0.0, 0.0, 0.0], [3.0, 2.0, 1.0])
    assert value("rm", "plackett-luce", even) == pytest.approx(math.log(6), abs=1e-12)


def test_plackett_luce_of_two_is_dpo_and_ties_are_not_compared() -> None:
    reference = table([-20.0, -20.0])
    two = Policy.of(reference + table([1.0, -1.0]), reference, ratings=table([1.0, 0.0])[..., None])
    assert value("dpo", "plackett-luce", two) == pytest.approx(0.598139, abs=1e-6)
    # 1 beside two equal below it: log(1 + 2 e^-1), in any order
    expected = math.log(1 + 2 * math.exp(-1))
    assert value("rm", "plackett-luce", scored([1.0, 0.0, 0.0], [1.0, 0.0, 0.0])) == pytest.approx(expected)
    assert value("rm", "plackett-luce", scored([5.0, 1.0], [1.0, 1.0])) == 0.0


@pytest.mark.parametrize(("margin", "expected"), [(0.0, 0.313262), (1 / 3, 0.414370), (3.0, 2.126928)])
def test_bradley_terry_margins(margin: float, expected: float) -> None:
    """Scores 1.2 and .2: -lsig(1 - m) = log(1 + exp(m - 1)), of exp(-1) = .367879, exp(-2/3) = .513417, exp(2)."""
    v = scored([1.2, 0.2], margin=torch.tensor([margin], dtype=torch.float64))
    assert value("rm", "bradley-terry", v) == pytest.approx(expected, abs=1e-6)
    assert value("rm", "poe-length", _with_lengths(v, 0.0)) == pytest.approx(expected, abs=1e-6)


def _with_lengths(v: Scored, gap: float) -> Scored:
    return Scored(**{**vars(v), "length_scores": table([gap, 0.0])})


def test_bradley_terry_centring_and_soft_labels() -> None:
    """1.2 + .2 = 1.4: .01 * 1.96 = .0196. Probability .75: .75 * .313262 + .25 * 1.313262 = .563262."""
    v = scored([1.2, 0.2])
    assert value("rm", "bradley-terry", v, center_rewards=0.01) == pytest.approx(0.313262 + 0.0196, abs=1e-6)
    assert value("rm", "bradley-terry", scored([1.2, 0.2], labels=labels(0.75))) == pytest.approx(0.563262, abs=1e-6)


def test_llama_2_safety() -> None:
    """Chosen safe (score 1.2), rejected unsafe (.2): -lsig(1.2) - lsig(-.2) = .263282 + .798139; unknown ones add 0."""
    both = scored([1.2, 0.2], [1.0, 0.0])
    assert value("rm", "bradley-terry", both, safety_weight=0.5) == pytest.approx(0.313262 + 0.530711, abs=1e-6)
    one = scored([1.2, 0.2], [math.nan, 0.0])
    assert value("rm", "bradley-terry", one, safety_weight=0.5) == pytest.approx(0.313262 + 0.399070, abs=1e-6)


def test_poe_length_adds_the_experts() -> None:
    """Gap 1 of the score and 2 of the length expert: -lsig(3) = .048587."""
    assert value("rm", "poe-length", _with_lengths(scored([1.2, 0.2]), 2.0)) == pytest.approx(0.048587, abs=1e-6)


def test_k_wise() -> None:
    """Scores 2, 1, 0: gaps 1, 2, 1: mean(.313262, .126928, .313262). Margins 1, 2, 1, the ratings' gaps: ln 2."""
    v = scored([2.0, 1.0, 0.0], [3.0, 2.0, 1.0])
    assert value("rm", "k-wise", v) == pytest.approx(0.251150, abs=1e-6)
    assert value("rm", "k-wise", v, use_margin=True) == pytest.approx(LN2, abs=1e-12)


def test_k_wise_is_the_mean_of_all_pairs() -> None:
    scores, ratings = [0.3, -1.2, 2.0, 0.7], [2.0, 1.0, 1.0, 5.0]
    pairs = [
        value("rm", "bradley-terry", scored([scores[i], scores[j]]))
        for i in range(4) for j in range(4) if ratings[i] > ratings[j]
    ]  # fmt: skip
    assert len(pairs) == 5  # of six, one is a tie
    assert value("rm", "k-wise", scored(scores, ratings)) == pytest.approx(sum(pairs) / 5)


def test_pointwise_losses() -> None:
    """bce: -lsig(.2) if good, -lsig(-.2) if bad. mse: heads 1 and 3 against ratings 2 and 3.5: (1 + .25) / 2; the
    second rating unknown: 1."""
    good, bad = (scored([0.2], label=table(float(one))) for one in (1, 0))
    assert value("rm", "bce", good) == pytest.approx(0.598139, abs=1e-6)
    assert value("rm", "bce", bad) == pytest.approx(0.798139, abs=1e-6)
    heads = Scored.of(table([[1.0, 3.0]]), ratings=table([[2.0, 3.5]]))
    assert value("rm", "mse", heads) == pytest.approx(0.625)
    assert value("rm", "mse", Scored.of(table([[1.0, 3.0]]), ratings=table([[2.0, math.nan]]))) == pytest.approx(1.0)


def test_ensemble() -> None:
    """Gaps 1 and 0 in two heads, drawn twice and once: (2 * .313262 + ln 2) / 2 = .659835; not drawn: 0."""
    v = Scored.of(table([[1.2, 0.5], [0.2, 0.5]]), draws=table([2.0, 1.0]))
    assert value("rm", "ensemble", v) == pytest.approx(0.313262 + LN2 / 2, abs=1e-6)
    assert value("rm", "ensemble", Scored.of(table([[1.2, 0.5], [0.2, 0.5]]), draws=table([0.0, 0.0]))) == 0.0


def kto_values(own: float, other: float, label: float) -> Policy:
    reference = table([-20.0, -20.0])
    return Policy.of(reference + table([own, other]), reference, label=torch.tensor([label], dtype=torch.float64))


@pytest.mark.parametrize(("label", "expected"), [(1.0, 0.462570), (0.0, 0.537430)])
def test_kto(label: float, expected: float) -> None:
    """d = 2, z0 = .5: 1 - s(.15) = .462570, and 1 - s(-.15). A negative KL counts as 0: 1 - s(+-.2)."""
    assert value("kto", "kto", kto_values(2.0, 0.5, label)) == pytest.approx(expected, abs=1e-6)
    clamped = 0.450166 if label else 0.549834
    assert value("kto", "kto", kto_values(2.0, -3.0, label)) == pytest.approx(clamped, abs=1e-6)
    assert value("kto", "apo-zero", kto_values(2.0, 9.0, label)) == pytest.approx(clamped, abs=1e-6)


def test_kto_weights_and_start() -> None:
    assert value("kto", "kto", kto_values(0.0, 0.0, 1.0), desirable_weight=3.0) == pytest.approx(1.5)
    assert value("kto", "kto", kto_values(0.0, 0.0, 0.0), undesirable_weight=5.0) == pytest.approx(2.5)


def test_kto_couples_the_batch_through_one_kl() -> None:
    """Mismatched log-ratios 1 and 3: z0 = 2 for both; d = 2: 1 - s(0)."""
    reference = table([-20.0, -20.0], [-20.0, -20.0])
    v = Policy.of(reference + table([2.0, 1.0], [2.0, 3.0]), reference, label=table(1.0, 0.0))
    assert losses("kto", "kto", v).tolist() == pytest.approx([0.5, 0.5])


def test_bco_shift() -> None:
    """Rewards .2 (good), .4 (good), -.1 (bad): shift = (.3 - .1) / 2 = .1; -lsig(.1), -lsig(.3), -lsig(.2)."""
    reference = table([-20.0], [-20.0], [-20.0])
    v = Policy.of(reference + table([2.0], [4.0], [-1.0]), reference, label=table(1.0, 1.0, 0.0))
    assert losses("kto", "bco", v).tolist() == pytest.approx([0.644397, 0.554355, 0.598139], abs=1e-6)
    alone = kto_values(2.0, 0.0, 1.0)
    assert value("kto", "bco", Policy.of(alone.logps[:, :1], alone.ref_logps[:, :1], label=alone.label)) == (
        pytest.approx(LN2)
    )


def test_aot_compares_order_statistics() -> None:
    """Policy gaps 4 and 0, reference gaps 1 and -1; sorted 0, 4 and -1, 1: d = 1, 3: -lsig(.1) and -lsig(.3).

    Unpaired: log-ratios of chosen 3, 1 and of rejected 0, 0; sorted d = 1, 3.
    """
    v = Policy.of(table([-16.0, -20.0], [-20.0, -20.0]), table([-19.0, -20.0], [-21.0, -20.0]))
    assert losses("dpo", "aot", v).tolist() == pytest.approx([0.644397, 0.554355], abs=1e-6)
    assert losses("dpo", "aot-unpaired", v).tolist() == pytest.approx([0.644397, 0.554355], abs=1e-6)


def test_nll() -> None:
    assert losses("sft", "nll", Policy.of(table([-3.0], [0.0]))).tolist() == [3.0, 0.0]


def test_f_divergences() -> None:
    """d = 1: forward-kl 1 - e^-1 = .632121; js ln 2 + lsig(1) = .379886; alpha .5: (e^-.5 - 1) / -.5 = .786939.

    DPO of c = 1, r = -1 under forward-kl: r's is 1 - e = -1.718282, h = 2.350402: -lsig(.2350402) = .582517.
    """
    d = table([1.0])
    assert link(d, "reverse-kl", 0.5).item() == 1.0
    assert link(d, "forward-kl", 0.5).item() == pytest.approx(0.632121, abs=1e-6)
    assert link(d, "js", 0.5).item() == pytest.approx(0.379885, abs=1e-6)
    assert link(d, "alpha", 0.5).item() == pytest.approx(0.786939, abs=1e-6)
    assert link(d, "alpha", 1.0).item() == 1.0
    assert value("dpo", "sigmoid", pair(1.0, -1.0), f_divergence="forward-kl") == pytest.approx(0.582517, abs=1e-6)


def test_nll_mix() -> None:
    """RPO: .598139 + .5 * 19 / 4 tokens."""
    v = pair(1.0, -1.0, counts=table([4.0, 5.0]))
    assert value("dpo", "sigmoid", v, nll_weight=0.5) == pytest.approx(0.598139 + 0.5 * 19 / 4, abs=1e-6)


def test_wpo_weighs_by_both_responses() -> None:
    """Means of log p - log sum p^2 of -.2 and -.5: exp(-.7) = .496585 of the loss."""
    v = pair(1.0, -1.0, off_policy=table([-0.2, -0.5]))
    assert value("dpo", "sigmoid", v, wpo=True) == pytest.approx(0.598139 * 0.496585, abs=1e-6)


def test_ld_dpo_weighs_surplus_tokens() -> None:
    """Responses of 2 and 3 tokens: the third token of the longer one counts alpha."""
    row, position = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 0, 1, 2])
    weights = token_weights(position, row, torch.tensor([[2, 3]]), 0.3)
    assert weights.tolist() == pytest.approx([1, 1, 1, 1, 0.3])


def test_soft_labels_of_every_pair_loss_are_the_expected_loss() -> None:
    """p f(c, r) + (1 - p) f(r, c), for whatever the loss is."""
    for loss in LOSSES.of("dpo"):
        if "soft_labels" not in loss.settings:
            continue
        counts = table([2.0, 4.0])
        right = value("dpo", loss.name, pair(1.0, -0.5, counts=counts), **_without_nll(loss.settings))
        flipped = value("dpo", loss.name, pair(-0.5, 1.0, counts=counts.flip(1)), **_without_nll(loss.settings))
        soft = value(
            "dpo", loss.name, pair(1.0, -0.5, counts=counts, labels=labels(0.7)), **_without_nll(loss.settings)
        )
        assert soft == pytest.approx(0.7 * right + 0.3 * flipped), loss.name


def _without_nll(settings: Any) -> dict[str, float]:
    return {name: 0.0 for name in ("nll_weight", "reg_weight") if name in settings}


@settings(deadline=None)  # the machine may be busy
@given(st.floats(0, 0.49), st.floats(-50, 50))
def test_one_probability_for_all_is_label_smoothing_to_the_bit(smoothing: float, z: float) -> None:
    logps, reference = torch.tensor([[z, 0.3]]), torch.zeros(1, 2)
    soft = Policy.of(logps, reference, labels=labels(1 - smoothing).float())
    hard = losses("dpo", "sigmoid", Policy.of(logps, reference), label_smoothing=smoothing)
    assert torch.equal(losses("dpo", "sigmoid", soft), hard)
