"""What export is asked to do."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import ConfigDict

from prefdata.specs.base import Group, Spec, identity_field, runtime_field

ExportKind = Literal["pairs", "unpaired", "demonstrations", "prompts", "groups", "candidates", "scores"]
DialectName = Literal[
    "trl", "sft", "kto", "listwise", "openrlhf", "llamafactory", "axolotl", "nemo-rl", "ms-swift", "verl",
    "align-anything", "online-rlhf", "hh", "alpaca", "sharegpt", "prefdata",
]  # fmt: skip
FileFormat = Literal["parquet", "arrow", "jsonl", "jsonl.gz", "jsonl.zst"]


class ExportSpec(Spec):
    """`prefdata export`: pairs, selections, labels, groups, demonstrations or prompts in, shards and a card out."""

    model_config = ConfigDict(populate_by_name=True)
    step: ClassVar[str] = "export"

    dialect: DialectName = identity_field(
        "trl", "Whose columns: a trainer's, or a format's (docs/formats.md).", group=Group.OUTPUT
    )
    kind: ExportKind | None = identity_field(
        None,
        "Which rows: pairs, unpaired (labelled responses), demonstrations (selections, too), prompts, groups (all "
        "responses of a prompt in order), candidates or scores; the dialect's usual ones unless given. sft and kto are "
        "trl as demonstrations and as unpaired.",
        alias="as",
        group=Group.OUTPUT,
    )
    pairing: str | None = identity_field(None, "Which pairs (the only ones unless given).", group=Group.INPUT)
    selector: str | None = identity_field(
        None, "as demonstrations: which selection (the only one unless given).", group=Group.INPUT
    )
    sampler: str | None = identity_field(None, "as candidates: whose (the only ones unless given).", group=Group.INPUT)
    scorer: str | None = identity_field(None, "as scores: which (the only ones unless given).", group=Group.INPUT)
    input: str | None = runtime_field(  # the lineage names what was read, given or not
        None,
        "Which demonstrations, unpaired labels or groups; the only ones unless given. Demonstrations are read without "
        "a name only where the run has no selection.",
        group=Group.INPUT,
    )
    strict_columns: bool = identity_field(
        False, "Only the columns that the dialect needs: no scores, no ids.", group=Group.OUTPUT
    )
    file_format: FileFormat | None = identity_field(
        None,
        "The container (the one that the dialect's loader reads, unless given).",
        alias="files",
        group=Group.OUTPUT,
    )
    shard_mb: int = identity_field(256, "Maximum size of a shard, in megabytes.", ge=1, group=Group.OUTPUT)
    license: str | None = identity_field(
        None, "The licence for the card, as the hub writes it (apache-2.0); unknown unless given.", group=Group.OUTPUT
    )
    subset: str | None = identity_field(
        None,
        "Write into a folder of that name in DIR, beside other subsets: load_dataset(DIR, NAME) reads it, and one card "
        "lists them all.",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,95}$",
        group=Group.OUTPUT,
    )
    push_to_hub: str | None = runtime_field(
        None,
        "Send what was written to this dataset on the Hugging Face hub, OWNER/NAME, in one commit; a new one is "
        "private. After an interruption, the same command sends what is missing.",
        group=Group.OUTPUT,
    )
    public: bool = runtime_field(False, "with --push-to-hub: a new dataset is public.", group=Group.OUTPUT)
