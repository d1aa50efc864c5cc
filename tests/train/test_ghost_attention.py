"""Ghost Attention from the file of dialogues to the trained tokens (Llama 2, 2307.09288, section 3.3).

The instruction occurs once in what is trained on and n times in what was sampled from, for n user turns; only the
tokens of the last answer and its end are trained, whatever way the rows come to the trainer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scored_runs import score_of
from transformers import AutoTokenizer

from prefdata import ids
from prefdata.chat.encoder import Chat
from prefdata.chat.transforms import PromptTransform
from prefdata.exports.export import export
from prefdata.pairs.pair import pair
from prefdata.prompts.ingest import ingest
from prefdata.selections.select import select
from prefdata.specs import ExportSpec, IngestSpec, PairSpec, SampleSpec, SelectSpec, Spec
from prefdata.storage.report import Report
from prefdata.storage.run import Lineage, Run
from prefdata.storage.schemas import CANDIDATES, SCORES, Table
from prefdata.train.data import open_source
from prefdata.train.encode import Encoder
from prefdata.train.parsing import Kind, parse
from prefdata.train.specs import SftSpec
from prefdata.train.train import train_sft

FULL, SHORT = "Act as Napoleon.", "Figure: Napoleon."
EOT = 3
MARKED = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] "
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<eot>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<eot>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
"""A template that marks every turn of the assistant, so that a trainer could learn all of them."""


class Made(Spec):
    """Stands for the step that made a table."""

    step = "made"


def fill(run: Run, table: Table, name: str, rows: list[dict[str, Any]]) -> None:
    partition = run.partition(table.name, name)
    partition.begin(Lineage.of(Made()))
    partition.append(table.from_rows(rows))
    partition.finish(Report(step="made", unit="rows", rows_in=len(rows), rows_out=len(rows)))


def candidate(prompt: dict[str, Any], index: int, text: str, seen: list[dict[str, str]] | None) -> dict[str, Any]:
    return {
        "candidate_id": ids.candidate_id(prompt["prompt_id"], "ghost", index),
        "prompt_id": prompt["prompt_id"],
        "sample_index": index,
        "text": text,
        "status": "ok",
        "finish_reason": "stop",
        "model": "m",
        "engine": "toy",
        "round": 0,
        "sampled_messages": seen,
    }


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Four dialogues of one to four user turns, each with a good and a bad answer drawn under Ghost Attention."""
    made, dialogues, told = Run(tmp_path / "run"), tmp_path / "dialogues.jsonl", tmp_path / "napoleon.yaml"
    told.write_text(f"- {{text: {FULL!r}, short: {SHORT!r}}}\n")
    turns = [[("user", "assistant")[t % 2] for t in range(2 * n + 1)] for n in range(4)]
    rows = [{"messages": [{"role": r, "content": f"q{i}{t}"} for t, r in enumerate(rs)]} for i, rs in enumerate(turns)]
    dialogues.write_text("".join(json.dumps({**row, "split": "train"}) + "\n" for row in rows))
    ingest(made, [str(dialogues)], IngestSpec(instructions=str(told)))
    view = PromptTransform.of(SampleSpec(model="m", ghost_attention=True))
    prompts = made.only("prompts").read().to_pylist()
    view.check(prompts)
    drawn = [
        candidate(prompt, i, text, view.messages(prompt, 0.5))
        for prompt in prompts
        for i, text in enumerate(("Vive", "No"))
    ]
    fill(made, CANDIDATES, "ghost", drawn)
    scores = [score_of(row, "ghost", -float(row["sample_index"])) for row in drawn]
    fill(made, SCORES, "truth", scores)
    select(made, SelectSpec(method="top-k", k=2, name="top"))
    pair(made, PairSpec(name="top"))
    return made


def test_once_in_the_training_sample_and_n_times_in_the_sampling_prompt(run: Run) -> None:
    seen = {row["prompt_id"]: row["sampled_messages"] for row in run.only("candidates").read().to_pylist()}
    prompts = run.only("prompts").read().to_pylist()
    assert len(prompts) == 4
    for prompt in prompts:
        users = sum(turn["role"] == "user" for turn in prompt["messages"])
        assert sum(turn["content"].count("Napoleon") for turn in prompt["messages"]) == 1
        sampled = seen[prompt["prompt_id"]] or prompt["messages"]
        assert sum(turn["content"].count(FULL) for turn in sampled) == users
        assert SHORT not in str(sampled)


def test_explain_shows_what_the_model_saw(run: Run, prefdata: Any) -> None:
    (asked,) = [row for row in run.only("prompts").read().to_pylist() if len(row["messages"]) == 3]
    (made,) = [row for row in run.only("pairs").read().to_pylist() if row["prompt_id"] == asked["prompt_id"]]
    code, out, err = prefdata("explain", run, made["pair_id"])
    assert (code, err) == (0, "")
    # said once in the prompt, on both user turns for each of the two answers
    assert out.count("Napoleon") == 1 + 2 * 2
    assert out.count("  sampled from these messages, not from the prompt:\n    user: Act as Napoleon.") == 2


@pytest.mark.parametrize("template", [None, MARKED], ids=["plain template", "template with marks"])
@pytest.mark.parametrize("way", ["run", "sft", "trl"])
def test_only_the_last_answer_and_its_end_are_trained(
    run: Run, tmp_path: Path, tiny_policy: Path, way: str, template: str | None
) -> None:
    """ "Vive" and its end: five tokens, for the tokenizer has one token a byte."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    tokenizer.chat_template = template or tokenizer.chat_template
    kind: Kind = "preferences" if way == "trl" else "demonstrations"
    data = run.path
    if way != "run":
        data = tmp_path / way
        export(run, ExportSpec(dialect=way), data)  # type: ignore[arg-type]
    source = open_source(data, kind)
    items = parse(source.read(), kind, source.name)
    examples = Encoder(Chat(tokenizer, name="tiny")).encode(items).examples
    assert len(examples) == 4
    for item, example in zip(items, examples, strict=True):
        assert str(item.prompt).count("Napoleon") == 1
        row = np.concatenate([example.prompt, example.responses[0]])
        loss = len(example.prompt) + example.trained_places(0)
        assert tokenizer.decode(row[loss]) == "Vive<eot>"
        assert loss.tolist() == list(range(len(row) - 5, len(row)))
        assert tokenizer.decode(row).count("Napoleon") == 1
        if way != "trl":
            assert example.trained_tokens == 5


def test_training_from_the_run_and_from_its_export_is_the_same(
    run: Run, tmp_path: Path, tiny_policy: Path, read_metrics: Any
) -> None:
    spec = SftSpec(model=str(tiny_policy), lr=1e-3)
    train_sft(run.path, spec, tmp_path / "from_run")
    export(run, ExportSpec(dialect="sft"), tmp_path / "sft")
    train_sft(tmp_path / "sft", spec, tmp_path / "from_export")
    losses = [[line["loss"] for line in read_metrics(tmp_path / name)] for name in ("from_run", "from_export")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)  # the same rows, in an order of their own
