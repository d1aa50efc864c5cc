"""Settings as one value, a list or a range."""

from __future__ import annotations

import pytest

from prefdata.errors import UsageError
from prefdata.specs import SampleSpec
from prefdata.specs.value_ranges import is_spread, value_of


def made(**said) -> SampleSpec:
    return SampleSpec.parse({"model": "m", **said})


@pytest.mark.parametrize(
    ("said", "held"),
    [("1", 1.0), (1, 1.0), ("0.70,1", "0.7,1.0"), ([0.7, 1], "0.7,1.0"), ("1.20:1.3", "1.2:1.3"), (0, 0.0)],
)
def test_one_canonical_form(said: object, held: object) -> None:
    assert made(temperature=said).temperature == held
    assert made(temperature=made(temperature=said).temperature).temperature == held


@pytest.mark.parametrize(
    ("name", "said", "why"),
    [
        ("temperature", "hot", "should be one number"),
        ("temperature", "-1", "at least 0"),
        ("temperature", "1.3:1.2", "low below high"),
        ("temperature", "1:2:3", "low below high"),
        ("temperature", "nan", "at least 0"),
        ("top_p", "0", "above 0"),
        ("top_p", "0.5,1.5", "at most 1"),
        ("top_k", "1.5", "should be one integer"),
        ("max_tokens", "0", "at least 1"),
        ("presence_penalty", "3", "at most 2"),
        ("temperature", "", "should be one number"),
    ],
)
def test_what_is_no_setting(name: str, said: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"{name}.*{why}"):
        made(**{name: said})


def test_values() -> None:
    assert value_of(1.0, 7, 0.5) == 1.0
    assert [value_of("0.7,1.0,1.2", i, 0.5) for i in range(4)] == [0.7, 1.0, 1.2, 0.7]
    assert value_of("1.2:1.3", 0, 0.5) == pytest.approx(1.25)
    assert [value_of("1:3", 0, u) for u in (0.01, 0.34, 0.99)] == [1, 2, 3]
    assert isinstance(value_of("1:3", 0, 0.5), int)
    assert not is_spread(1.0)
    assert is_spread("1:3")


def test_a_fixed_value_has_one_fingerprint_however_it_is_written() -> None:
    assert made(temperature="1").fingerprint() == made(temperature=1.0).fingerprint()
    assert made(temperature="1:2").fingerprint() != made(temperature="1,2").fingerprint()
