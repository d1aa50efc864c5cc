"""Specs: what each step is asked to do, said once, for flags, YAML, Python and footers alike."""

from prefdata.specs.base import Spec, difference, how, what
from prefdata.specs.deciding import EVERYTHING, ExportSpec, FilterSpec, PairSpec, SelectSpec
from prefdata.specs.generating import EngineSpec, IngestSpec, ModelSpec, SampleSpec
from prefdata.specs.ranking import RankSpec

__all__ = [
    "EVERYTHING",
    "EngineSpec",
    "ExportSpec",
    "FilterSpec",
    "IngestSpec",
    "ModelSpec",
    "PairSpec",
    "RankSpec",
    "SampleSpec",
    "SelectSpec",
    "Spec",
    "difference",
    "how",
    "what",
]
