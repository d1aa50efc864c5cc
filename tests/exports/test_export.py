"""export: what a trainer's own loader makes of the folder, and that the folder is made once and whole."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ingested import prompts_of
from scored_runs import score_of

from prefdata import ids
from prefdata.errors import InputError, NotReady, SpecConflict, UsageError
from prefdata.exports.export import export
from prefdata.exports.shards import ShardWriter, rows_per_shard, shard_name
from prefdata.formats.files import RawRow
from prefdata.pairs.pair import pair
from prefdata.selections.select import select
from prefdata.specs import ExportSpec, PairSpec, SelectSpec, Spec, identity_field
from prefdata.storage.report import Report
from prefdata.storage.run import Lineage, Run
from prefdata.storage.schemas import CANDIDATES, SCORES, TABLES


class ToySpec(Spec):
    step = "toy"
    seed: int = identity_field(0, "x")


def done(step: str, rows: int) -> Report:
    return Report(step=step, unit="rows", rows_in=rows, rows_out=rows)


def candidate(prompt: str, index: int, text: str) -> dict[str, Any]:
    return {
        "candidate_id": ids.candidate_id(prompt, "s", index),
        "prompt_id": prompt,
        "sample_index": index,
        "text": text,
        "token_ids": [1],
        "status": "ok",
        "finish_reason": "stop",
        "prompt_tokens": 3,
        "completion_tokens": 1,
        "logprob_sum": -1.0,
        "model": "toy",
        "model_revision": "r",
        "engine": "toy",
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "max_tokens": 8,
        "seed": index,
        "round": 0,
    }


def put(run: Run, table: str, name: str, rows: list[dict[str, Any]] | pa.Table) -> None:
    rows = rows if isinstance(rows, pa.Table) else {"candidates": CANDIDATES, "scores": SCORES}[table].from_rows(rows)
    partition = run.partition(table, name)
    partition.begin(Lineage.of(ToySpec()), replace=True)
    partition.append(rows)
    partition.finish(done("toy", rows.num_rows))


def made(path: Path, prompts: int = 10, tools: bool = False) -> Run:
    """A run of `prompts` prompts with three answers each, scored -1, 0 and 1, a third of the prompts held out."""
    run = Run(path)
    raw = [
        RawRow("f", i, {"prompt": f"Question {i}?", "split": "test" if i % 3 == 0 else "train", "system": "Be brief"})
        for i in range(prompts)
    ]
    if tools:
        raw[0] = RawRow("f", 0, {**raw[0].values, "tools": [{"type": "function", "function": {"name": "f"}}]})
    table, _ = prompts_of(raw)
    put(run, "prompts", "toy", table)
    drawn = [candidate(p, i, f"Answer {i} 🙂\n") for p in table["prompt_id"].to_pylist() for i in range(3)]
    put(run, "candidates", "policy", drawn)
    scores = [score_of(c, "policy", float(c["sample_index"] - 1)) for c in drawn]
    put(run, "scores", "truth", scores)
    select(run, SelectSpec(method="top-k", k=3))
    pair(run, PairSpec(strategy="all"))
    return run


def listed(path: Path, **said: Any) -> Run:
    """The same run with labels (-1 bad, 0 neither, 1 good), groups and demonstrations."""
    run = made(path, **said)
    for name in ("unpaired", "groups", "demonstrations"):
        pair(run, PairSpec(as_=name, selector="all", name="toy"))
    return run


def contents(folder: Path) -> dict[str, str]:
    files = (f for f in folder.rglob("*") if f.is_file() and f.name != "_SUCCESS")
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def table(of: int) -> pa.Table:
    return pa.table({"i": list(range(of)), "text": [f"{i:06d}" * 20 for i in range(of)]})


@settings(deadline=None, max_examples=25)  # the machine may be busy
@given(st.lists(st.integers(0, 30), max_size=4), st.integers(1, 25))
def test_shards_are_the_rows_in_order_and_of_equal_length(batches: list[int], each: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardWriter(Path(folder), "data", "train", "parquet", table(1).schema, each)
        rows = table(sum(batches)).cast(table(1).schema)
        for batch in batches:
            writer.write(rows.slice(0, batch))
            rows = rows.slice(batch)
        split = writer.finish()
        files = sorted(Path(folder).glob("data/*"))
        parts = [pq.read_table(file) for file in files]
    assert [i for part in parts for i in part["i"].to_pylist()] == list(range(sum(batches)))
    assert all(part.num_rows == each for part in parts[:-1])
    assert [file.name for file in files] == [f"train-{n:05d}-of-{len(files):05d}.parquet" for n in range(len(files))]
    assert (split.rows, split.files) == (sum(batches), math.ceil(sum(batches) / each))


def test_shards_stay_below_their_size(tmp_path: Path) -> None:
    noise = [hashlib.sha256(str(i).encode()).hexdigest() * 8 for i in range(5000)]
    rows = pa.table({"text": noise})
    pq.write_table(rows, tmp_path / "whole", compression="zstd")
    whole = (tmp_path / "whole").stat().st_size
    each = rows_per_shard(rows.slice(0, 2000), 5000, 100_000, "parquet")
    assert math.ceil(5000 / each) in range(math.ceil(whole / 100_000), math.ceil(whole / 100_000) + 3)
    for start in range(0, 5000, each):
        pq.write_table(rows.slice(start, each), tmp_path / "part", compression="zstd")
        assert (tmp_path / "part").stat().st_size < 110_000


def test_names() -> None:
    assert shard_name("data", "train", 3, 12) == "data/train-00003-of-00012.parquet"
    assert shard_name("{split}", "test", 0, 1, "jsonl.gz") == "test/test-00000-of-00001.jsonl.gz"


def test_what_is_written(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    outcome = export(run, ExportSpec(), tmp_path / "out")
    assert outcome.did == "made"
    report = outcome.report
    assert (report.unit, report.rows_in, report.rows_out, report.dropped) == ("pairs", 30, 30, {})
    assert report.figures == {"train": 18, "test": 12, "files": 2}
    assert sorted(contents(tmp_path / "out")) == [
        "README.md",
        "_spec.json",
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00001.parquet",
    ]
    rows = pq.read_table(tmp_path / "out/data/train-00000-of-00001.parquet")
    keys = [(row["prompt_id"], row["pair_id"]) for row in rows.select(["prompt_id", "pair_id"]).to_pylist()]
    assert keys == sorted(keys)  # a prompt's pairs stay together
    for row in rows.to_pylist():
        assert row["prompt"][0] == {"role": "system", "content": "Be brief"}
        assert row["prompt_id"] == ids.prompt_id(row["prompt"])
        assert row["pair_id"] == ids.pair_id(row["chosen_id"], row["rejected_id"])
        assert row["chosen"] == [{"role": "assistant", "content": f"Answer {int(row['chosen_score']) + 1} 🙂\n"}]
        assert row["rejected"] == [{"role": "assistant", "content": f"Answer {int(row['rejected_score']) + 1} 🙂\n"}]
        assert row["score_margin"] == row["chosen_score"] - row["rejected_score"] > 0
    lineage = Lineage.model_validate_json(rows.schema.metadata[b"prefdata"])
    assert lineage.spec["pairing"] == run.only("pairs").name


def test_a_prompt_is_in_one_split_only(tmp_path: Path) -> None:
    export(made(tmp_path / "run"), ExportSpec(), tmp_path / "out")
    train, test = (
        set(pq.read_table(tmp_path / f"out/data/{split}-00000-of-00001.parquet")["prompt_id"].to_pylist())
        for split in ("train", "test")
    )
    assert (len(train), len(test), train & test) == (6, 4, set())


def test_the_best_answer_of_each_prompt(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    outcome = export(run, ExportSpec(dialect="sft"), tmp_path / "out")
    assert (outcome.report.rows_in, outcome.report.rows_out) == (30, 10)
    assert outcome.report.dropped == {"not_the_best": 20}
    rows = pq.read_table(tmp_path / "out/data/train-00000-of-00001.parquet").to_pylist()
    assert {row["completion"][0]["content"] for row in rows} == {"Answer 2 🙂\n"}
    assert [message["role"] for message in rows[0]["prompt"] + rows[0]["completion"]] == ["system", "user", "assistant"]


def test_labelled_answers(tmp_path: Path) -> None:
    report = export(listed(tmp_path / "run"), ExportSpec(dialect="kto"), tmp_path / "out").report
    assert (report.unit, report.rows_in, report.rows_out) == ("unpaired", 20, 20)
    rows = pq.read_table(tmp_path / "out/data/train-00000-of-00001.parquet").to_pylist()
    assert len(rows) == 12
    for row in rows:
        assert row["label"] == (row["score"] == 1.0)
        assert row["completion"] == [{"role": "assistant", "content": f"Answer {int(row['score']) + 1} 🙂\n"}]
        assert row["prompt_id"] == ids.prompt_id(row["prompt"])


def test_answers_in_order(tmp_path: Path) -> None:
    run = listed(tmp_path / "run")
    report = export(run, ExportSpec(dialect="listwise"), tmp_path / "out").report
    assert (report.unit, report.rows_in, report.rows_out) == ("groups", 10, 10)
    for row in pq.read_table(tmp_path / "out/data/train-00000-of-00001.parquet").to_pylist():
        assert [said["content"] for (said,) in row["completions"]] == [f"Answer {i} 🙂\n" for i in (2, 1, 0)]
        assert (row["scores"], row["ranks"]) == ([1.0, 0.0, -1.0], [1, 2, 3])
    first = min(run.partition("groups", "toy").read()["candidate_ids"].to_pylist())[1]
    rows = [row for row in run.partition("candidates", "policy").read().to_pylist() if row["candidate_id"] != first]
    put(run, "candidates", "policy", rows)
    with pytest.raises(InputError, match=r"1 of 10 rows of groups/toy .*prefdata pair --as groups"):
        export(run, ExportSpec(dialect="listwise"), tmp_path / "again")


def test_demonstrations_are_exported_where_they_are_named_or_alone(tmp_path: Path) -> None:
    run = listed(tmp_path / "run")
    assert export(run, ExportSpec(dialect="sft"), tmp_path / "best").report.unit == "selections"
    named = export(run, ExportSpec(dialect="sft", input="toy"), tmp_path / "named").report
    assert (named.unit, named.rows_out, named.dropped) == ("demonstrations", 30, {})
    rows = pq.read_table(tmp_path / "named/data/train-00000-of-00001.parquet").to_pylist()
    assert {(row["completion"][0]["content"], row["weight"]) for row in rows} == {
        (f"Answer {i} 🙂\n", 1.0) for i in range(3)
    }
    with pytest.raises(UsageError, match="--selector and --input name two inputs"):
        export(run, ExportSpec(dialect="sft", input="toy", selector="x"), tmp_path / "both")
    shutil.rmtree(run.path / "selections")
    assert export(run, ExportSpec(dialect="sft"), tmp_path / "alone").report.unit == "demonstrations"


def test_ties_are_never_exported_as_preferences(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    pairs = run.only("pairs").read().to_pylist()
    for row in pairs[::3]:
        row.update(verdict="tie", margin=0.0, probability=0.5)
    put(run, "pairs", "judged", TABLES["pairs"].from_rows(pairs))
    report = export(run, ExportSpec(pairing="judged"), tmp_path / "out").report
    assert (report.rows_in, report.rows_out, report.dropped) == (30, 20, {"tie": 10})
    written = {
        row["pair_id"]
        for split in ("train", "test")
        for row in pq.read_table(tmp_path / f"out/data/{split}-00000-of-00001.parquet").to_pylist()
    }
    assert written == {row["pair_id"] for row in pairs if row["verdict"] == "chosen"}


def test_the_same_again_is_nothing_to_do_and_other_inputs_remake(tmp_path: Path) -> None:
    run, out = made(tmp_path / "run"), tmp_path / "out"
    export(run, ExportSpec(), out)
    before = contents(out)
    assert export(run, ExportSpec(), out).did == "kept"
    assert export(run, ExportSpec(), tmp_path / "again").did == "made"
    assert contents(tmp_path / "again").keys() == before.keys()
    name = run.only("pairs").name
    pair(run, PairSpec(strategy="best-worst", name=name), replace=True)
    assert export(run, ExportSpec(), out).did == "remade"
    assert export(run, ExportSpec(), out).report.rows_out == 10
    assert not list(tmp_path.glob("_*"))


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / "1" / "out", tmp_path / "2" / "out"]
    for folder in folders:
        export(made(folder.parent / "run"), ExportSpec(), folder)
    assert contents(folders[0]) == contents(folders[1])


def test_other_settings_conflict_and_replace_replaces_only_our_own(tmp_path: Path) -> None:
    run, out = made(tmp_path / "run"), tmp_path / "out"
    export(run, ExportSpec(), out)
    with pytest.raises(SpecConflict, match="strict_columns: False -> True"):
        export(run, ExportSpec(strict_columns=True), out)
    assert export(run, ExportSpec(strict_columns=True), out, replace=True).did == "replaced"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    for replace in (False, True):
        with pytest.raises(InputError, match="holds files that prefdata did not write"):
            export(run, ExportSpec(), mine, replace=replace)
    with pytest.raises(InputError, match=r"thesis\.tex is a file\. Name a folder"):
        export(run, ExportSpec(), mine / "thesis.tex")
    assert (mine / "thesis.tex").read_text() == "years of work"


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="has no pairs yet"):
        export(Run(tmp_path / "none"), ExportSpec(), tmp_path / "out")
    run = made(tmp_path / "run")
    with pytest.raises(UsageError, match="the dialect trl reads pairs, named with --pairing: leave out --selector"):
        export(run, ExportSpec(selector="rso"), tmp_path / "out")
    with pytest.raises(UsageError, match="sft reads selections or demonstrations, named with --selector or --input"):
        export(run, ExportSpec(dialect="sft", pairing="rso"), tmp_path / "out")
    with pytest.raises(UsageError, match="has no pairs named 'rso'"):
        export(run, ExportSpec(pairing="rso"), tmp_path / "out")
    put(run, "candidates", "policy", [])
    with pytest.raises(InputError, match=r"30 of 30 rows of pairs/.* that .*run does not hold .*prefdata pair"):
        export(run, ExportSpec(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_card_tells_the_tables_behind_the_rows_in_order(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    put(run, "candidates", "unused", [])
    export(run, ExportSpec(), tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    told = [line.split("`")[1] for line in text.splitlines() if "by `prefdata " in line]
    selector, pairing = run.only("selections").name, run.only("pairs").name
    assert told == ["prompts/toy", "candidates/policy", "scores/truth", f"selections/{selector}", f"pairs/{pairing}"]


def load(folder: Path, cache: Path) -> Any:
    datasets = pytest.importorskip("datasets")
    return datasets.load_dataset(str(folder), cache_dir=str(cache))


def test_datasets_loads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("prefdata.exports.export.rows_per_shard", lambda some, *_: math.ceil(some.num_rows / 2))
    export(made(tmp_path / "run"), ExportSpec(), tmp_path / "out")
    assert len(list((tmp_path / "out" / "data").iterdir())) == 4
    found = load(tmp_path / "out", tmp_path / "cache")
    assert {name: len(rows) for name, rows in found.items()} == {"train": 18, "test": 12}
    message = datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})
    assert {name: found["train"].features[name] for name in ("prompt", "chosen", "rejected")} == {
        "prompt": message,
        "chosen": message,
        "rejected": message,
    }
    assert found["train"].features["score_margin"] == datasets.Value("float64")
    written = pa.concat_tables(
        pq.read_table(tmp_path / "out" / shard_name("data", "train", part, 2)).replace_schema_metadata()
        for part in range(2)
    )
    assert found["train"].to_list() == written.to_pylist()
    builder = datasets.load_dataset_builder(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert builder.info.splits["test"].num_examples == 12


def test_datasets_loads_an_export_without_a_test_split(tmp_path: Path) -> None:
    export(made(tmp_path / "run", prompts=1), ExportSpec(strict_columns=True), tmp_path / "out")
    found = load(tmp_path / "out", tmp_path / "cache")
    assert {name: rows.column_names for name, rows in found.items()} == {"test": ["prompt", "chosen", "rejected"]}


@pytest.mark.peers
@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_trl_reads_preferences(tmp_path: Path, tiny_policy: Path, strict: bool, tools: bool) -> None:
    from transformers import AutoTokenizer
    from trl import data_utils

    export(made(tmp_path / "run", tools=tools), ExportSpec(strict_columns=strict), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    rows = load(tmp_path / "out", tmp_path / "cache")
    with_tools = 0
    for row in [*rows["train"], *rows["test"]]:
        assert data_utils.is_conversational(row)
        assert data_utils.maybe_extract_prompt(row) == row  # the prompt is explicit, nothing is to be extracted
        if row.get("tools"):
            row, with_tools = {**row, "tools": json.loads(row["tools"])}, with_tools + 1
        said = data_utils.maybe_apply_chat_template(row, tokenizer, tools=row.get("tools"))
        question, chosen = row["prompt"][-1]["content"], row["chosen"][0]["content"]
        assert said["prompt"].endswith(f"[system] Be brief<eot>[user] {question}<eot>[assistant] ")
        assert said["prompt"].startswith("<bos>[tools]" if row.get("tools") else "<bos>[system]")
        assert said["chosen"] == f"{chosen}<eot>"
    assert with_tools == (3 if tools else 0)


@pytest.mark.peers
def test_trl_reads_demonstrations(tmp_path: Path, tiny_policy: Path) -> None:
    from transformers import AutoTokenizer
    from trl import data_utils

    export(made(tmp_path / "run"), ExportSpec(dialect="sft"), tmp_path / "out")
    row = load(tmp_path / "out", tmp_path / "cache")["train"][0]
    assert data_utils.is_conversational(row)
    said = data_utils.maybe_apply_chat_template(row, AutoTokenizer.from_pretrained(tiny_policy))
    assert said["prompt"].endswith("[assistant] ")
    assert said["completion"] == "Answer 2 🙂\n<eot>"


@pytest.mark.peers
def test_trl_reads_labelled_answers_and_trains_on_them(tmp_path: Path, tiny_policy: Path) -> None:
    """At the start policy = reference: the log-ratios and their mean are 0, each loss is 1 - sigmoid(0) = 1/2."""
    from transformers import AutoTokenizer
    from trl import KTOConfig, KTOTrainer, data_utils

    export(listed(tmp_path / "run"), ExportSpec(dialect="kto"), tmp_path / "out")
    rows = load(tmp_path / "out", tmp_path / "cache")["train"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    for row in rows:
        assert data_utils.is_conversational(row)
        assert data_utils.maybe_unpair_preference_dataset(rows) is rows  # it is unpaired already
        said = data_utils.maybe_apply_chat_template(row, tokenizer)
        assert said["completion"] == f"{row['completion'][0]['content']}<eot>"
        assert said["label"] == (row["score"] == 1.0)
    trainer = KTOTrainer(
        str(tiny_policy),
        args=KTOConfig(
            output_dir=str(tmp_path / "kto"),
            max_steps=1,
            per_device_train_batch_size=4,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    assert trainer.train().training_loss == pytest.approx(0.5, abs=1e-4)
    counted = sum(int(batch["label"].sum()) for batch in trainer.get_train_dataloader())
    assert counted == sum(rows["label"]) == 6


@pytest.mark.peers
def test_trl_trains_on_every_demonstration(tmp_path: Path, tiny_policy: Path) -> None:
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    export(listed(tmp_path / "run"), ExportSpec(dialect="sft", input="toy"), tmp_path / "out")
    rows = load(tmp_path / "out", tmp_path / "cache")["train"]
    settings: dict[str, Any] = {"report_to": [], "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    trainer = SFTTrainer(
        str(tiny_policy),
        args=SFTConfig(output_dir=str(tmp_path / "sft"), max_steps=1, disable_tqdm=True, **settings),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(tiny_policy),
    )
    assert len(trainer.train_dataset) == len(rows) == 18
    assert math.isfinite(trainer.train().training_loss)


@pytest.mark.peers
def test_trl_trains_on_it_and_adds_no_margin_unasked(
    tmp_path: Path, tiny_policy: Path, tiny_reward_model: Path
) -> None:
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    export(made(tmp_path / "run"), ExportSpec(), tmp_path / "out")
    rows = load(tmp_path / "out", tmp_path / "cache")["train"]
    settings: dict[str, Any] = {
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    dpo = DPOTrainer(
        str(tiny_policy),
        args=DPOConfig(output_dir=str(tmp_path / "dpo"), **settings),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    assert dpo.train().training_loss == pytest.approx(math.log(2), abs=1e-4)
    reward = RewardTrainer(
        str(tiny_reward_model),
        args=RewardConfig(output_dir=str(tmp_path / "rm"), **settings),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    batch = next(iter(reward.get_train_dataloader()))
    assert "margin" not in batch


def test_answers_that_two_samplers_drew_by_the_same_law_are_exported_once(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    export(run, ExportSpec(), tmp_path / "once")
    put(run, "candidates", "again", run.partition("candidates", "policy").read())
    export(run, ExportSpec(), tmp_path / "twice")
    once, twice = (pq.read_table(next((tmp_path / name / "data").glob("train-*"))) for name in ("once", "twice"))
    assert twice["chosen"].equals(once["chosen"])
    assert twice["rejected"].equals(once["rejected"])
