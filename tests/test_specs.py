"""Specs: strict, frozen, one fingerprint for one result."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from prefdata.candidates.sample import expand_sweep
from prefdata.errors import UsageError
from prefdata.specs import IngestSpec, PairSpec, RankSpec, SampleSpec, SelectSpec, describe_changes, identity_field
from prefdata.storage.report import Report


def test_unknown_keys_are_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r'run.yaml: unknown key "temprature"\. Did you mean "temperature"\?'):
        SampleSpec.parse({"model": "m", "temprature": 1.0}, where="run.yaml")


def test_all_problems_at_once() -> None:
    with pytest.raises(UsageError) as found:
        SampleSpec.parse({"temperature": "hot", "n": 0})
    said = str(found.value)
    assert "model is needed" in said
    assert "temperature: should be one number, a list (a,b,c) or a range (low:high), not 'hot'" in said
    assert "n: should be greater than or equal to 1, not 0" in said


@pytest.mark.parametrize("value", ["1", 1.5, True])
def test_no_value_is_bent_into_shape(value) -> None:
    with pytest.raises(UsageError):
        SampleSpec.parse({"model": "m", "n": value})


def test_lists_become_tuples_and_whole_numbers_floats() -> None:
    spec = SelectSpec.parse({"sampler": ["a", "b"], "beta": 1})
    assert spec.sampler == ("a", "b")
    assert spec.beta == 1.0


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        SelectSpec().k = 3  # type: ignore[misc]


def test_how_much_and_how_stay_out_of_the_fingerprint() -> None:
    base = SampleSpec(model="m")
    assert base.fingerprint() == SampleSpec(model="m", n=99, batch_tokens=7, name="x", split="test").fingerprint()
    assert base.fingerprint() != SampleSpec(model="m", temperature=0.9).fingerprint()
    assert "n" not in base.identity()
    assert SelectSpec().fingerprint() != PairSpec().fingerprint()


def test_exactly_one_scorer() -> None:
    for values in ({}, {"reward_model": "m", "function": "f.py:g"}):
        with pytest.raises(UsageError, match="name one scorer"):
            RankSpec.parse(values)


def test_beta_inf_has_a_fingerprint() -> None:
    assert SelectSpec(beta=float("inf")).fingerprint() != SelectSpec(beta=1.0).fingerprint()


def test_difference() -> None:
    assert describe_changes({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == "b: 2 -> 3, c: None -> 4"


def test_reports_add_up() -> None:
    Report(step="s", unit="rows", rows_in=3, rows_out=1, dropped={"tie": 2})
    with pytest.raises(ValueError, match="1 unaccounted for"):
        Report(step="s", unit="rows", rows_in=3, rows_out=1, dropped={"tie": 1})


def test_a_new_setting_that_is_off_changes_no_fingerprint() -> None:
    class Before(SampleSpec):
        pass

    class After(SampleSpec):
        novelty: float = identity_field(0.0, "Something new.")

    assert Before(model="m").fingerprint() == After(model="m").fingerprint()
    assert After(model="m").fingerprint() != After(model="m", novelty=0.5).fingerprint()


@pytest.mark.parametrize(
    ("longest", "shortest"),
    [(32, 33), ("32,64", 40), ("32:64", 33), (50, "40,60"), (50, "40:51"), ("64,32", "16,48"), ("8,9", "1,2,9")],
)
def test_no_answer_is_longer_at_least_than_at_most(longest, shortest) -> None:
    with pytest.raises(UsageError, match=r"--max-tokens .* is below --min-tokens .* could not end"):
        SampleSpec.parse({"model": "m", "max_tokens": longest, "min_tokens": shortest})


@pytest.mark.parametrize(
    ("longest", "shortest"),
    [(32, 32), ("32,64", 32), ("32:64", 32), (50, "40:50"), ("32,64", "16,48"), (1 << 40, f"1:{1 << 40}")],
)
def test_answers_that_can_end(longest, shortest) -> None:
    SampleSpec.parse({"model": "m", "max_tokens": longest, "min_tokens": shortest})


def test_the_samplers_of_a_sweep_are_asked_by_themselves() -> None:
    spec = SampleSpec(model="m", min_tokens=600, sweep=("max_tokens=700,800",))
    assert [one.max_tokens for one in expand_sweep(spec)] == [700, 800]
    with pytest.raises(UsageError, match="--max-tokens 500 is below --min-tokens 600"):
        expand_sweep(SampleSpec(model="m", min_tokens=600, sweep=("max_tokens=500,800",)))


def test_scaled_scores_are_within_0_and_1() -> None:
    for threshold in (0.0, 1.0):
        SelectSpec(method="threshold", threshold=threshold, scale="min-max")
    SelectSpec(method="threshold", threshold=2.0)
    for threshold in (-0.1, 1.1):
        with pytest.raises(UsageError, match="is not within 0 and 1"):
            SelectSpec.parse({"method": "threshold", "threshold": threshold, "scale": "min-max"})


@pytest.mark.parametrize("name", ["scorer", "name", "selector", "judge", "refusal_phrases"])
def test_an_empty_text_is_not_taken_for_none(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}: should not be an empty text"):
        PairSpec.parse({name: ""})


def test_an_empty_text_that_says_something() -> None:
    assert IngestSpec(system="").system == ""
    assert SampleSpec(model="m", api_key_env="").api_key_env == ""


def test_a_lineage_with_settings_that_are_refused_today_is_told_of_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"made with settings that this prefdata refuses \(.*--threshold -0\.1"):
        SelectSpec.from_identity({"method": "threshold", "scale": "min-max", "threshold": -0.1})
