"""The settings of a finished step that differ from their defaults, as reports show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefdata.specs.base import Spec
from prefdata.specs.export import ExportSpec
from prefdata.specs.ingest import IngestSpec
from prefdata.specs.pair import PairSpec
from prefdata.specs.rank import KINDS, RankSpec
from prefdata.specs.sample import SampleSpec
from prefdata.specs.select import SelectSpec

_SPECS: dict[str, type[Spec]] = {
    spec.step: spec for spec in (IngestSpec, SampleSpec, RankSpec, SelectSpec, PairSpec, ExportSpec)
}


def non_default_settings(step: str, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a step that are not at their defaults, and what was known at run time only.

    Of a step without a spec here (training) all settings with a value are returned.
    """
    given = {name: value for name, value in identity.items() if value is not None}
    spec = _SPECS.get(step)
    if spec is RankSpec:
        spec = next((kind for name, kind in KINDS.items() if given.get(name)), spec)
    if spec is not None:
        return spec.non_default_identity(given)
    return {name: value for name, value in given.items() if value is not False and value != []}
