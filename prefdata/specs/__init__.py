"""Specs: what each step is asked to do, said once, for flags, YAML, Python and footers alike."""

from prefdata.specs.base import Group, Spec, difference, flag_of, group_of, how, what
from prefdata.specs.deciding import EVERYTHING, ExportSpec, FilterSpec, PairSpec, SelectSpec
from prefdata.specs.generating import EngineSpec, HardwareSpec, ModelSpec, SampleSpec, VllmSpec
from prefdata.specs.ingest import IngestKind, IngestSpec
from prefdata.specs.rank import (
    AggregateSpec,
    CalibrateSpec,
    CombineSpec,
    FunctionSpec,
    ImplicitSpec,
    JudgeSpec,
    MeanLogprobSpec,
    PairwiseSpec,
    PointwiseSpec,
    RankSpec,
    RewardModelSpec,
    SimilaritySpec,
    VerifierSpec,
)

__all__ = [
    "EVERYTHING",
    "AggregateSpec",
    "CalibrateSpec",
    "CombineSpec",
    "EngineSpec",
    "ExportSpec",
    "FilterSpec",
    "FunctionSpec",
    "Group",
    "HardwareSpec",
    "ImplicitSpec",
    "IngestKind",
    "IngestSpec",
    "JudgeSpec",
    "MeanLogprobSpec",
    "ModelSpec",
    "PairSpec",
    "PairwiseSpec",
    "PointwiseSpec",
    "RankSpec",
    "RewardModelSpec",
    "SampleSpec",
    "SelectSpec",
    "SimilaritySpec",
    "Spec",
    "VerifierSpec",
    "VllmSpec",
    "difference",
    "flag_of",
    "group_of",
    "how",
    "what",
]
