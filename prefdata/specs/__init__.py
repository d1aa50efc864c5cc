"""Specs: the settings of each step, defined once for flags, YAML, Python and footers."""

from prefdata.specs.base import Group, Spec, describe_changes, flag_of, group_of, identity_field, runtime_field
from prefdata.specs.export import ExportSpec
from prefdata.specs.filters import EVERYTHING, FilterSpec
from prefdata.specs.ingest import IngestKind, IngestSpec
from prefdata.specs.pair import PairSpec
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
from prefdata.specs.sample import EngineSpec, HardwareSpec, ModelSpec, SampleSpec, VllmSpec
from prefdata.specs.select import SelectSpec

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
    "describe_changes",
    "flag_of",
    "group_of",
    "identity_field",
    "runtime_field",
]
