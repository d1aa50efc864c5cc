"""Drawing tokens: the law, the cut-offs, and that a row's draw is its own."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prefdata.engines.hf.token_sampling import Settings, draw, stream_keys, truncate, uniforms
from prefdata.engines.protocol import Sampling


def sampling(temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0) -> Sampling:
    return Sampling(temperature, top_p, top_k, 1, min_p)


def kept(logits: list[float], how: Sampling) -> list[float]:
    """The probabilities (rounded) from which one row is drawn."""
    scaled = torch.tensor([logits]).double().log_softmax(-1) / how.temperature
    return [round(p, 6) for p in truncate(scaled, Settings.of([how], len(logits))).softmax(-1)[0].tolist()]


def test_the_noise_is_splitmix64():
    """Published first outputs of SplitMix64 from state 0 are e220a8397b1dcdaf, 6e789e6aa1b965f4, 06c45d188009454f.

    A seed of 0 mixes to state 0, so those are its keys at steps 1 to 3; and they are the bits behind the uniforms of a
    key that mixes to 0 as state: the top 48 of them, plus a half.
    """
    outputs = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    keys = stream_keys([0], 3)[0]
    assert [key % (1 << 64) for key in keys.tolist()] == outputs
    expected = [((bits >> 16) + 0.5) / 2**48 for bits in outputs]
    assert uniforms(torch.tensor([0]), 3)[0].tolist() == expected


def test_uniforms_are_uniform_and_differ_by_seed_step_and_token():
    keys = stream_keys(list(range(1, 41)), 25).flatten()
    assert len(set(keys.tolist())) == 1000
    numbers = uniforms(keys, 100)
    assert 0 < float(numbers.min()) < float(numbers.max()) < 1
    assert stats.kstest(numbers.flatten().numpy(), "uniform").pvalue > 1e-3
    correlation = torch.corrcoef(numbers[:40])
    assert float((correlation - torch.eye(40)).abs().max()) < 0.6  # 100 numbers each: 0.1 is one standard deviation


def test_a_wide_seed_is_used_in_full():
    top, low = 2**53 - 1, 2**53 - 2
    assert len({int(stream_keys([seed], 1)) for seed in (top, low, top - 2**52, 0, 1)}) == 5


@pytest.mark.parametrize(
    "how",
    [
        sampling(),
        sampling(0.5),
        sampling(2.0, top_k=3),
        sampling(top_p=0.8),
        sampling(min_p=0.1),
        sampling(0.7, 0.9, 4, 0.05),
    ],
)
def test_draws_follow_the_law(how):
    logits = torch.tensor([1.0, -1.0, 0.5, 2.0, -3.0, 0.0])
    n = 40_000
    expected = torch.tensor(kept(logits.tolist(), how)).double() * n
    rows = logits.expand(n, 6)
    token, _ = draw(rows, Settings.of([how] * n, 6), stream_keys(range(n), 1)[:, 0])
    found = torch.bincount(token, minlength=6)
    alive = expected > 0
    assert int(found[~alive].sum()) == 0
    assert stats.chisquare(found[alive], expected[alive] * (n / expected.sum())).pvalue > 1e-3


def test_temperature_zero_takes_the_first_of_the_likeliest():
    token, logp = draw(torch.tensor([[0.0, 2.0, 2.0]]), Settings.of([sampling(0.0)], 3), torch.tensor([5]))
    assert token.tolist() == [1]
    assert logp.item() == pytest.approx(2 - math.log(1 + 2 * math.exp(2)))


def test_top_k_and_top_p_by_hand():
    """p = 0.4, 0.3, 0.2, 0.1: a share of 0.69 needs two tokens, 0.71 three; 0.75 of top-3 (4/9, 3/9, 2/9) two."""
    logits = [math.log(p) for p in (0.1, 0.4, 0.2, 0.3)]
    assert kept(logits, sampling(top_k=2)) == [0, 0.571429, 0, 0.428571]
    assert kept(logits, sampling(top_p=0.69)) == [0, 0.571429, 0, 0.428571]
    assert kept(logits, sampling(top_p=0.71)) == [0, 0.444444, 0.222222, 0.333333]
    assert kept(logits, sampling(top_p=0.75, top_k=3)) == [0, 0.571429, 0, 0.428571]
    assert kept(logits, sampling(top_p=1e-9)) == [0, 1, 0, 0]
    assert kept(logits, sampling(top_k=99)) == [0.1, 0.4, 0.2, 0.3]


def test_min_p_by_hand():
    """p = 0.4, 0.3, 0.2, 0.1: half of the likeliest is 0.2, which stays; 0.51 of it, 0.204, is more than 0.2."""
    logits = [math.log(p) for p in (0.1, 0.4, 0.2, 0.3)]
    assert kept(logits, sampling(min_p=0.499)) == [0, 0.444444, 0.222222, 0.333333]
    assert kept(logits, sampling(min_p=0.51)) == [0, 0.571429, 0, 0.428571]
    assert kept(logits, sampling(min_p=1.0)) == [0, 1, 0, 0]
    assert kept(logits, sampling(min_p=0.2)) == [0.1, 0.4, 0.2, 0.3]


def test_min_p_comes_after_temperature_and_before_the_nucleus():
    """At temperature 2 the least p is 0.163 of 0.325, just over a half. And of 0.4 and 0.3, 0.57 is in the first."""
    logits = [math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]
    assert kept(logits, sampling(2.0, min_p=0.49))[3] > 0
    assert kept(logits, sampling(1.0, min_p=0.49))[3] == 0
    assert kept(logits, sampling(min_p=0.7, top_p=0.55)) == [1, 0, 0, 0]
    assert kept(logits, sampling(top_p=0.55)) == [0.571429, 0.428571, 0, 0]


def test_temperature_comes_before_the_nucleus():
    """At temperature 2, p goes as the square root: 0.4, 0.3, 0.2, 0.1 become 0.325, 0.282, 0.230, 0.163."""
    logits = [math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]
    assert kept(logits, sampling(2.0, top_p=0.65))[2] > 0
    assert kept(logits, sampling(1.0, top_p=0.65))[2] == 0


def test_equal_tokens_at_the_border():
    assert kept([0.0] * 4, sampling(top_p=0.5)) == [0.5, 0.5, 0, 0]
    assert kept([0.0] * 4, sampling(top_k=1)) == [0.25] * 4


def test_agrees_with_transformers_own_warpers():
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)).double() * 3
    warped = logits
    for warper in (TemperatureLogitsWarper(0.8), MinPLogitsWarper(0.01), TopKLogitsWarper(40), TopPLogitsWarper(0.9)):
        warped = warper(None, warped)
    ours = truncate(logits.log_softmax(-1) / 0.8, Settings.of([sampling(0.8, 0.9, 40, 0.01)] * 50, 300))
    torch.testing.assert_close(ours.softmax(-1), warped.softmax(-1))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.3, 1.0, 5.0]),
            st.sampled_from([1e-6, 0.5, 0.95, 1.0]),
            st.sampled_from([0, 1, 5, 1000]),
            st.sampled_from([0.0, 0.1, 1.0]),
            st.integers(0, 2**53 - 1),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_a_rows_draw_is_its_own(rows):
    logits = torch.randn(len(rows), 50, generator=torch.Generator().manual_seed(len(rows)))
    hows = [sampling(*row[:4]) for row in rows]
    keys = stream_keys([row[4] for row in rows], 1)[:, 0]
    together, logp = draw(logits, Settings.of(hows, 50), keys)
    for i, how in enumerate(hows):
        alone, own = draw(logits[i : i + 1], Settings.of([how], 50), keys[i : i + 1])
        assert int(alone) == int(together[i])
        assert float(own) == pytest.approx(float(logp[i]), abs=1e-12)


def test_log_probabilities_ignore_how_it_was_drawn():
    logits = torch.tensor([[0.0, 1.0, 3.0]] * 2)
    hows = [sampling(0.1, 0.5, 1), sampling(0.0)]
    token, logp = draw(logits, Settings.of(hows, 3), torch.tensor([1, 2]))
    assert token.tolist() == [2, 2]
    assert logp.tolist() == pytest.approx([3 - math.log(1 + math.e + math.e**3)] * 2)


def test_penalised_logits_are_drawn_from_and_log_probabilities_are_of_the_others():
    logits = torch.tensor([[0.0, 1.0, 3.0]] * 2)
    barred = torch.tensor([[0.0, 1.0, -math.inf]] * 2).double()
    token, logp = draw(logits, Settings.of([sampling(0.0), sampling(0.1)], 3), torch.tensor([1, 2]), barred)
    assert token.tolist() == [1, 1]
    assert logp.tolist() == pytest.approx([1 - math.log(1 + math.e + math.e**3)] * 2)


def test_rounding_moves_few_draws():
    """Logits off by 1e-6 change a draw with a probability of about their distance: 4 in a million at most here."""
    torch.manual_seed(0)
    logits = torch.randn(2000, 512).double() * 2
    other = logits + torch.randn_like(logits) * 1e-6
    how = Settings.of([sampling()] * 2000, 512)
    keys = stream_keys(range(2000), 50)
    changed = sum(int((draw(logits, how, k)[0] != draw(other, how, k)[0]).sum()) for k in keys.T)
    assert changed <= 2  # of 100,000
