"""The registry of scorers: one entry a kind, identities that never change, settings that belong to kinds."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import prefdata
from prefdata.errors import UsageError
from prefdata.models.files import identify
from prefdata.scorers import kinds
from prefdata.scorers.open import SCORERS, is_pairwise, scorer_identity, scorer_outputs
from prefdata.specs import RankSpec, RewardModelSpec, SampleSpec
from prefdata.specs.rank import KINDS
from prefdata.storage.run import Lineage

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests/golden/scorers.json").read_text("utf-8"))


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: " ".join(f"{k}={v}" for k, v in case["spec"].items()))
def test_golden_fingerprints(case, monkeypatch) -> None:
    """A scorer's fingerprint is a published contract: existing scores stay those of the same command.

    The values were recorded when all kinds were one class, with the files in golden/files, the shipped rubrics, and
    models whose revision is "revision of PATH": how a folder's revision is computed is another contract.
    """
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(kinds, "identify", of_fixed_revision)
    spec = RankSpec.parse(case["spec"])
    assert spec.fingerprint() == case["fingerprint"]
    assert Lineage.of(spec, resolved=scorer_identity(spec)).fingerprint == case["lineage"]
    assert list(scorer_outputs(spec)) == case["outputs"]


def of_fixed_revision(model, kind, **more):
    return replace(identify(model, kind, **more), path=None, revision=f"revision of {model}")


def test_the_golden_cases_name_every_kind() -> None:
    assert {RankSpec.parse(case["spec"]).kind for case in GOLDEN} == set(SCORERS) == set(KINDS)


def test_the_flag_names_the_kind() -> None:
    spec = prefdata.RankSpec(reward_model="m", label="all")
    assert type(spec) is RewardModelSpec
    assert (
        spec == RewardModelSpec(reward_model="m", label="all") == RankSpec.parse({"reward_model": "m", "label": "all"})
    )
    for name, kind in KINDS.items():
        assert getattr(prefdata, kind.__name__) is kind
        needed = {name: ("a",) if name == "comparisons" else "exact" if name == "similarity" else "x"}
        more = {"implicit": {"reference": "m"}, "calibrate": {"length": "rc-lwr"}}.get(name, {})
        assert type(RankSpec(**needed, **more)) is kind


def test_a_copy_is_of_the_same_kind() -> None:
    spec = RankSpec(function="f.py:f")
    assert spec.model_copy(update={"name": "g"}) == RankSpec(function="f.py:f", name="g")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"function": "f.py:f", "beta": 0.5}, "--beta goes with --implicit, and changes nothing here"),
        ({"function": "f.py:f", "beta": 0.1}, "--beta goes with --implicit"),
        ({"reward_model": "m", "rubric": "r"}, "--rubric goes with --pointwise or --pairwise or --judge"),
        ({"combine": "a + b", "sampler": ["s"]}, "--sampler goes with --reward-model or --function or"),
        ({"function": "f.py:f", "device": "cpu"}, "--device goes with --reward-model or --pointwise or"),
        ({"verifier": "number", "time_limit": 1.0}, "--time-limit goes with --verifier regex:PATTERN or"),
        ({"verifier": "choice", "workers": 3}, "--workers goes with --verifier regex:PATTERN or"),
        ({"similarity": "exact", "reference": "m"}, "--reference goes with --similarity states"),
        ({"similarity": "rouge-l", "dtype": "float32"}, "--dtype goes with --similarity states"),
        ({"similarity": "states"}, "--similarity states needs a --reference"),
        ({"comparisons": ["j"], "aggregate": "borda", "prior": 1.0}, "--prior goes with --aggregate bradley-terry"),
        ({"comparisons": ["j"], "aggregate": "copeland", "seed": 1}, "--seed goes with --aggregate bradley-terry or"),
        ({"calibrate": "s", "labelled": "p", "length_weight": 1.0}, "--length-weight goes with --length penalty"),
        ({"function": "f.py:f", "nam": "x"}, 'unknown key "nam". Did you mean "name"?'),
    ],
)
def test_a_setting_that_a_kind_does_not_have(settings, said) -> None:
    with pytest.raises(UsageError, match="rank: ") as error:
        RankSpec.parse(settings)
    assert said in str(error.value)


def test_what_is_not_given_belongs_to_every_kind() -> None:
    """A YAML file may list settings of other kinds without a value."""
    empty = {"pairwise": None, "comparisons": [], "beta": None, "sampler": []}
    assert RankSpec.parse({"function": "f.py:f", **empty}) == RankSpec(function="f.py:f")


def test_an_absolute_rubric_makes_scores() -> None:
    assert is_pairwise(RankSpec(judge="m", rubric="pairwise", schedule="all"))
    assert not is_pairwise(RankSpec(judge="m"))
    with pytest.raises(UsageError, match="--schedule is for a pairwise rubric, and helpful is absolute"):
        is_pairwise(RankSpec(judge="m", schedule="all"))


def test_the_registry_is_light() -> None:
    heavy = ["torch", "transformers", "vllm", "polars"]
    code = f"import sys\nfor name in {heavy!r}: sys.modules[name] = None\nimport prefdata.scorers.open"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_engines_share_their_settings() -> None:
    """What sample and judge say of an engine is the same; a reward model has what a server has no part in."""
    judge, sampler = KINDS["judge"].model_fields, SampleSpec.model_fields
    engine = [name for name in sampler if name in judge and name not in ("seed", "name")]
    assert len(engine) > 15
    assert [name for name in engine if judge[name].description != sampler[name].description] == []
    assert "base_url" not in KINDS["reward_model"].model_fields
