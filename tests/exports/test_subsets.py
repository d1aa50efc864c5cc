"""Several exports in one folder: each a subset that `datasets` loads by its name, and one card for all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from prefdata.errors import InputError
from prefdata.exports.export import export
from prefdata.prompts.ingest import ingest
from prefdata.specs import ExportSpec, IngestSpec
from prefdata.storage.queries import read_candidates
from prefdata.storage.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two scored responses to each of four prompts, by two models."""
    rows = [
        {"prompt": f"Name film {n}.", "response": text, "quality": score, "model": model}
        for n in range(4)
        for text, score, model in [("The Robot.", 0.9, "large"), ("No.", 0.1, "small")]
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    made = Run(tmp_path / "run")
    ingest(made, [str(tmp_path / "rows.json")], IngestSpec(kind="candidates", score=["quality"], test=0.0))
    return made


def subset(run: Run, to: Path, name: str) -> None:
    export(run, ExportSpec(dialect="prefdata", kind=name, subset=name), to)


def test_datasets_loads_each_by_its_name(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    subset(run, tmp_path / "out", "candidates")
    subset(run, tmp_path / "out", "scores")
    assert datasets.get_dataset_config_names(str(tmp_path / "out")) == ["candidates", "scores"]
    cache = str(tmp_path / "cache")
    candidates = datasets.load_dataset(str(tmp_path / "out"), "candidates", split="train", cache_dir=cache)
    scores = datasets.load_dataset(str(tmp_path / "out"), "scores", split="train", cache_dir=cache)
    said = {row["candidate_id"]: (row["response"][0]["content"], row["model"]) for row in candidates}
    assert {said[row["candidate_id"]] + (row["score"],) for row in scores} == {
        ("The Robot.", "large", 0.9),
        ("No.", "small", 0.1),
    }


def test_responses_and_scores_come_back(tmp_path: Path, run: Run) -> None:
    subset(run, tmp_path / "out", "scores")
    again = Run(tmp_path / "again")
    ingest(again, [str(tmp_path / "out/scores")], IngestSpec(kind="candidates", score=["score"]))
    assert {*read_candidates(again, ["prompt_id", "text"])["text"]} == {"The Robot.", "No."}
    assert {*read_candidates(again, ["prompt_id"])["prompt_id"]} == {*read_candidates(run, ["prompt_id"])["prompt_id"]}
    found = again.only("scores").read(["score"])["score"].to_pylist()
    assert sorted(found) == [0.1] * 4 + [0.9] * 4


def test_the_card_has_the_tags_and_rows_of_all(tmp_path: Path, run: Run) -> None:
    subset(run, tmp_path / "out", "candidates")
    export(run, ExportSpec(kind="prompts", subset="prompts", license="mit"), tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["tags"] == ["prefdata", "responses", "prompts", "trl"]
    assert front["license"] == "unknown"  # one of them is
    assert front["configs"] == [
        {"config_name": name, "data_files": [{"split": "train", "path": f"{name}/data/train-*"}]}
        for name in ("candidates", "prompts")
    ]
    assert "| [candidates](candidates/README.md) | 8 |" in text
    assert "| [prompts](prompts/README.md) | 4 |" in text


def test_one_is_replaced_and_the_others_stay(tmp_path: Path, run: Run) -> None:
    subset(run, tmp_path / "out", "candidates")
    subset(run, tmp_path / "out", "scores")
    before = (tmp_path / "out/scores/data/train-00000-of-00001.parquet").read_bytes()
    spec = ExportSpec(dialect="prefdata", kind="candidates", subset="candidates", strict_columns=True)
    export(run, spec, tmp_path / "out", replace=True)
    assert (tmp_path / "out/scores/data/train-00000-of-00001.parquet").read_bytes() == before
    front = yaml.safe_load((tmp_path / "out/README.md").read_text().split("---\n")[1])
    features = {one["config_name"]: [f["name"] for f in one["features"]] for one in front["dataset_info"]}
    assert features["candidates"] == ["prompt", "response", "model"]
    assert "candidate_id" in features["scores"]


def test_a_card_that_somebody_wrote_or_changed_is_kept(tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    subset(run, out, "candidates")
    card = out / "README.md"
    card.write_text(card.read_text().replace("# out", "# Films"))
    with pytest.raises(InputError, match="not written by prefdata, or was changed"):
        subset(run, out, "scores")
    assert "# Films" in card.read_text()
    assert not (out / "scores").exists()


def test_an_export_has_subsets_or_none(tmp_path: Path, run: Run) -> None:
    export(run, ExportSpec(kind="prompts"), tmp_path / "one")
    with pytest.raises(InputError, match="is an export without subsets"):
        subset(run, tmp_path / "one", "candidates")
    subset(run, tmp_path / "several", "candidates")
    with pytest.raises(InputError, match="did not write"):
        export(run, ExportSpec(kind="prompts"), tmp_path / "several")


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "_data", "a b"])
def test_names_that_are_no_folder_are_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        ExportSpec(subset=name)
