"""prefdata: preference data from prompts to a better model.

The commands as functions, imported on first use so that `import prefdata` stays light:

    run = prefdata.Run("runs/demo")
    prefdata.ingest(run, ["prompts.jsonl"], prefdata.IngestSpec())
    prefdata.sample(run, prefdata.SampleSpec(model="policy"))
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_WHERE = {
    "Run": "storage.run",
    "IngestSpec": "specs",
    "SampleSpec": "specs",
    "RankSpec": "specs",
    "RewardModelSpec": "specs",
    "FunctionSpec": "specs",
    "VerifierSpec": "specs",
    "SimilaritySpec": "specs",
    "PointwiseSpec": "specs",
    "PairwiseSpec": "specs",
    "JudgeSpec": "specs",
    "ImplicitSpec": "specs",
    "MeanLogprobSpec": "specs",
    "AggregateSpec": "specs",
    "CombineSpec": "specs",
    "CalibrateSpec": "specs",
    "SelectSpec": "specs",
    "PairSpec": "specs",
    "ExportSpec": "specs",
    "ingest": "prompts.ingest",
    "sample": "candidates.sample",
    "rank": "steps",
    "select": "selections.select",
    "pair": "pairs.pair",
    "export": "exports.export",
    "SftSpec": "train.specs",
    "RmSpec": "train.specs",
    "DpoSpec": "train.specs",
    "KtoSpec": "train.specs",
    "PpoSpec": "train.ppo.specs",
    "train_sft": "train.train",
    "train_rm": "train.train",
    "train_dpo": "train.train",
    "train_kto": "train.train",
    "train_ppo": "train.ppo.ppo",
    "query": "explore.sql",
    "explain": "explore.explain",
    "explain_candidate": "explore.explain_candidate",
    "status": "explore.status",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'prefdata' has no attribute {name!r}")
    return getattr(import_module(f"prefdata.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
