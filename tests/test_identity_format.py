"""A run that an earlier version of prefdata began: every command reads it, and none continues it in silence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from prefdata.candidates import job
from prefdata.ids import FORMAT, candidate_id, digest, seed
from prefdata.scorers import open as scorers
from prefdata.storage.lineage import write_json
from prefdata.storage.run import Lineage

GOLDEN = json.loads((Path(__file__).parent / "golden" / "ids.json").read_text("utf-8"))
POLICY = Path(__file__).parents[1] / "sample_data" / "policy"


@pytest.fixture
def line(prefdata):
    """`line("status run")`: exit code and stderr of a command line."""

    def call(text: str) -> tuple[int, str]:
        code, _, err = prefdata(*text.split())
        return code, err

    return call


def begun_before(folder: Path) -> None:
    """Write a `_spec.json` as format 1 had it: no format in the identity, and only the weights' hash as the model."""
    lineage = json.loads((folder / "_spec.json").read_text())
    spec = lineage["spec"]
    del spec["format"]
    for name in ("model", "reward_model"):
        if spec.get(name):
            spec[name] = spec[name].partition(".")[0]
    lineage["fingerprint"] = digest({"step": lineage["step"], **spec})
    del lineage["checksum"]
    write_json(folder / "_spec.json", Lineage.model_validate(lineage))


@pytest.fixture
def old(tmp_path: Path, tiny_policy: Path, tiny_reward_model: Path, line, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a sampler, a scorer and a trained model that were made in format 1; models in the working folder."""
    monkeypatch.chdir(tmp_path)
    for module in (job, scorers):  # other ids than today's, as before
        monkeypatch.setattr(module, "FORMAT", 1)
    shutil.copytree(tiny_policy, "policy")
    shutil.copytree(tiny_reward_model, "reward")
    Path("asked.jsonl").write_text("".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(6)))
    for command in (
        "ingest run asked.jsonl --test 0",
        "sample run --model policy -n 3 --max-tokens 8 --name s",
        "rank run --reward-model reward --name rm",
    ):
        assert line(command)[0] == 0
    begun_before(tmp_path / "run/candidates/sampler=s")
    begun_before(tmp_path / "run/scores/scorer=rm")
    for module in (job, scorers):
        monkeypatch.setattr(module, "FORMAT", FORMAT)
    return tmp_path / "run"


def test_what_models_made_before_is_refused_in_one_line_that_says_what_to_do(old: Path, line) -> None:
    sampled = "sample run --model policy -n 5 --max-tokens 8 --name s"
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    for command in (sampled, f"{sampled} --retry-truncated", "rank run --reward-model reward --name rm"):
        code, err = line(command)
        assert (code, err.count("\n")) == (2, 1)
        assert f"made by another version of prefdata (identity format 1, here {FORMAT})" in err
        assert "--name" in err
        assert "--replace" in err
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before
    for command in (f"{sampled} --name s2", "rank run --reward-model reward --name rm2", f"{sampled} --replace"):
        code, err = line(command)
        assert code == 0, err


def test_every_command_reads_what_was_made_before(old: Path, line, prefdata) -> None:
    for command in (
        "select run --method best-of-n --scorer rm --name best",
        "pair run --selector all --scorer rm --name pairs",
        "export run --to out --dialect trl",
        "status run",
        "rank run --reward-model reward --name rm2",
        "rank run --combine rm+rm2 --name both",
        "train dpo run --model policy --out dpo --batch-size 4",
    ):
        assert line(command)[0] == 0, command
    code, out, _ = prefdata("sql", "run", "select count(*) as n from candidates join scores using (candidate_id)")
    assert code == 0
    assert "54" in out  # 6 prompts x 3 candidates x 3 scorers
    begun_before(Path("dpo"))
    code, err = line("train dpo run --model policy --out dpo --batch-size 4")
    assert code == 2
    assert "identity format 1" in err


def test_golden_identity_of_a_sampler() -> None:
    """The hash of the canonical JSON written out in `hashed`: what differs from the defaults, the format among it.

    The law is the same without the step and without what only decides how far a response goes; a candidate's id and
    seed are made from it.
    """
    from prefdata.specs import SampleSpec

    vector = GOLDEN["sampler"]
    spec = SampleSpec.parse(vector["settings"])
    lineage = Lineage.of(spec, resolved=vector["resolved"])
    assert json.loads(vector["hashed"])["format"] == FORMAT == vector["resolved"]["format"]
    assert digest(json.loads(vector["hashed"])) == lineage.fingerprint == vector["fingerprint"]
    law = digest(json.loads(vector["law_hashed"]))
    assert law == vector["law"]
    assert candidate_id("p", law, 3) == vector["candidate_id"]
    assert seed(spec.seed, "p", law, 3) == vector["seed"]


def test_golden_identity_of_a_model(tmp_path: Path) -> None:
    """Each part is the hash of the canonical JSON in `hashed`, which is made of the files' values by hand."""
    from prefdata.models.identity import config_id, text_id

    vector = GOLDEN["model"]
    for name, text in vector["files"].items():
        (tmp_path / name).write_text(text)
    for part, made in (("config", config_id(tmp_path)), ("text", text_id(tmp_path))):
        assert made == digest(json.loads(vector[part]["hashed"])) == vector[part]["id"]


def test_the_law_of_a_job_is_made_as_the_golden_one(old: Path) -> None:
    from prefdata.specs import SampleSpec
    from prefdata.storage.run import Run

    made = job.SamplingJob.of(
        Run(old), SampleSpec(model="policy", n=2, max_tokens=9, temperature=0.5, logprobs=True, name="x")
    )
    said = made.lineage.spec
    wanted = {name: said[name] for name in ("format", "model", "engine", "tokenizer")}
    assert made.sampler_fingerprint == digest({**wanted, "temperature": 0.5})
    assert made.lineage.fingerprint == digest(
        {**wanted, "step": "sample", "temperature": 0.5, "max_tokens": 9, "logprobs": True}
    )
