"""--push-to-hub: one commit of what export wrote, private, resumable; against a hub on a local socket."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from shells import console_commands
from stub_hub import StubHub

from prefdata.errors import InputError, PrefdataError, UsageError
from prefdata.exports.export import export
from prefdata.prompts.ingest import ingest
from prefdata.specs import ExportSpec, IngestSpec
from prefdata.storage.run import Run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    from huggingface_hub import constants

    stub = StubHub()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", stub.url)
    yield stub
    stub.close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    rows = [{"prompt": f"Name film {n}.", "chosen": "The Robot.", "rejected": f"No {n}."} for n in range(40)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    made = Run(tmp_path / "run")
    ingest(made, [str(tmp_path / "rows.json")], IngestSpec(kind="pairs", test=0.25))
    return made


def in_folder(folder: Path) -> dict[str, bytes]:
    """What export wrote, by name."""
    ours = [file for file in folder.rglob("*") if file.is_file() and file.name not in ("_SUCCESS", "_spec.json")]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in ours}


def test_what_was_written_is_on_the_hub_and_nothing_else(tmp_path: Path, run: Run, hub: StubHub) -> None:
    """Not the notes of whoever keeps some in the folder, not the files of prefdata's own."""
    spec = ExportSpec(push_to_hub="me/films")
    export(run, spec, tmp_path / "out")
    written = in_folder(tmp_path / "out")
    assert hub.files == written
    assert sorted(written) == [
        "README.md",
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00001.parquet",
    ]
    (tmp_path / "out/notes.txt").write_text("mine")
    outcome = export(run, spec, tmp_path / "out")
    assert outcome.report.figures["hub"] == f"{hub.url}/datasets/me/films"
    assert hub.files == written


@pytest.mark.parametrize("public", [False, True])
def test_a_new_repository_is_private_unless_it_is_to_be_public(
    tmp_path: Path, run: Run, hub: StubHub, public: bool
) -> None:
    export(run, ExportSpec(push_to_hub="me/films", public=public), tmp_path / "out")
    (asked,) = hub.created
    assert (asked["organization"], asked["name"], asked["type"]) == ("me", "films", "dataset")
    assert asked.get("visibility", "private" if asked.get("private") else "public") == (
        "public" if public else "private"
    )


def test_an_interrupted_push_sends_what_is_missing(tmp_path: Path, run: Run, hub: StubHub) -> None:
    hub.refused = [403]
    spec = ExportSpec(push_to_hub="me/films")
    with pytest.raises(PrefdataError, match=r"did not take|does not let"):
        export(run, spec, tmp_path / "out")
    assert hub.files == {}
    sent = list(hub.uploads)
    export(run, spec, tmp_path / "out")
    assert hub.files == in_folder(tmp_path / "out")
    assert len(hub.uploads) == len({*hub.uploads}) == 2
    assert hub.uploads[: len(sent)] == sent


def test_shards_that_are_gone_go_with_the_same_commit(tmp_path: Path, run: Run, hub: StubHub) -> None:
    hub.files = {"data/train-00001-of-00002.parquet": b"old", "LICENSE": b"theirs"}
    export(run, ExportSpec(push_to_hub="me/films"), tmp_path / "out")
    assert hub.files == {"LICENSE": b"theirs", **in_folder(tmp_path / "out")}


def test_all_subsets_go_together(tmp_path: Path, run: Run, hub: StubHub) -> None:
    export(run, ExportSpec(subset="pairs"), tmp_path / "out")
    export(run, ExportSpec(kind="prompts", subset="prompts", push_to_hub="me/films"), tmp_path / "out")
    assert hub.files == in_folder(tmp_path / "out")
    assert {"README.md", "pairs/README.md", "prompts/README.md"} <= hub.files.keys()


@pytest.mark.parametrize("name", ["a/b/c", "a b", "-x/y", "me/films.git", "me/a--b", "me/../films"])
def test_names_that_are_none_are_refused_before_anything_is_written(tmp_path: Path, run: Run, name: str) -> None:
    with pytest.raises(UsageError, match="no name of a dataset"):
        export(run, ExportSpec(push_to_hub=name), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_token_is_told_before_anything_is_written(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UsageError, match="hf auth login"):
        export(run, ExportSpec(push_to_hub="me/films"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_hub_that_refuses_or_is_not_there_is_one_line(
    tmp_path: Path,
    run: Run,
    hub: StubHub,
    monkeypatch: pytest.MonkeyPatch,
    prefdata: Callable[..., tuple[int, str, str]],
) -> None:
    """What was written stays, and the same command again sends it."""
    hub.status = 403
    with pytest.raises(InputError, match=r"does not let this token write to me/films \(403"):
        export(run, ExportSpec(push_to_hub="me/films"), tmp_path / "out")
    code, _, err = prefdata("export", run.path, "--to", tmp_path / "out", "--push-to-hub", "me/films")
    assert code == 2
    assert "Traceback" not in err
    assert "hf_secret" not in err


def test_a_hub_that_is_not_there_is_named_and_what_was_written_stays(
    tmp_path: Path, run: Run, hub: StubHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.close()
    with pytest.raises(PrefdataError, match=r"cannot be reached for me/films.*The same command again"):
        export(run, ExportSpec(push_to_hub="me/films"), tmp_path / "out")
    assert in_folder(tmp_path / "out")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        export(run, ExportSpec(push_to_hub="me/films"), tmp_path / "out")


def test_the_command_of_the_page(
    tmp_path: Path, run: Run, hub: StubHub, prefdata: Callable[..., tuple[int, str, str]]
) -> None:
    (command,) = console_commands(Path(__file__).parents[2] / "docs/formats.md", "hub")
    words = command.replace("runs/formats", str(run.path)).replace("runs/out", str(tmp_path)).split()[1:]
    code, out, err = prefdata(*[{"labelled": "rows", "OWNER/NAME": "me/films"}.get(word, word) for word in words])
    assert code == 0, err
    assert f"{hub.url}/datasets/me/films" in out
    assert hub.files == in_folder(tmp_path / "all")
