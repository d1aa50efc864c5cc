"""Layouts as data: every built-in one reads its example, and a user's own works the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from formats.test_kinds import records, shown

from prefdata.errors import BadRows, InputError, UsageError
from prefdata.formats.layout_maps import built_in, named_map
from prefdata.prompts.ingest import ingest
from prefdata.specs import IngestSpec
from prefdata.storage.run import Run

MAPS = built_in()


@pytest.mark.parametrize("name", [name for name, one in MAPS.items() if one.refuse is None])
def test_each_layout_reads_its_example(name: str, tmp_path: Path, write: Callable[..., str]) -> None:
    """Named or found, alone or by `ingest`: the same."""
    layout = MAPS[name]
    assert layout.about
    assert layout.example
    want = layout.reads_as
    names = [one.name for one in layout.verdicts or ()]
    verdict = names[0] if len(names) > 1 else None
    found = [shown(record) for record in records(layout.example, layout=name, want=want, verdict=verdict)]
    if layout.needs or layout.is_general:
        assert [shown(record) for record in records(layout.example, want=want, verdict=verdict)] == found
    spec = IngestSpec(kind=want, layout=name, verdict=verdict, test=0.0)
    report = ingest(Run(tmp_path / "run"), [write(*layout.example)], spec).report
    assert report.rows_out >= 1
    assert report.figures["layout"] == name
    marks = {"pairs": (" > ", " = "), "unpaired": ("+", "-"), "candidates": (", ", "."), "demonstrations": ("ref: ",)}
    assert all(any(mark in one for mark in marks.get(str(want), ("",))) for one in found), found


@pytest.mark.parametrize("name", [name for name, one in MAPS.items() if one.refuse is not None])
def test_what_is_not_read_is_refused_by_name(name: str) -> None:
    layout = MAPS[name]
    with pytest.raises(InputError) as caught:
        list(records(layout.example, want="prompts"))
    assert str(caught.value) == f"f: {layout.about}: {layout.refuse}"


OWN = """
about: Judged films.
prompt: {text: case.request, system: case.rules, then: [case.more]}
responses:
  - {column: first, model: wrote.0}
  - {column: second, model: wrote.1, attributes: {stars: stars_second}}
verdicts:
  - {better: "{better_one}", name: quality}
weight: trust
tags: genres
drop:
  - {column: language, values: [fr, de], reason: not English}
ignore: [internal]
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.yaml").write_text(OWN)
    return str(tmp_path / "own.yaml")


ROW = {
    "case": {"request": "Q?", "rules": "Sys", "more": "Now."},
    "first": "Aaa",
    "second": "Bbb",
    "wrote": ["m", "n"],
    "stars_second": 4,
    "better_one": "second",
    "trust": 0.5,
    "genres": ["western"],
    "internal": "x",
    "unused": 7,
}


def test_a_layout_of_ones_own(own: str) -> None:
    (record,) = records([ROW], layout=own)
    assert shown(record) == "Sys / Q?\n\nNow. | Bbb > Aaa"
    assert [one.model for one in record.responses] == ["m", "n"]
    assert record.responses[1].attributes == {"stars": 4}
    assert (record.weight, record.tags, record.metadata) == (0.5, ["western"], {"unused": 7})


def test_rows_that_a_layout_leaves_out_are_counted_with_its_reason(
    own: str, tmp_path: Path, write: Callable[..., str]
) -> None:
    rows = [{**ROW, "language": "fr"}, {**ROW, "language": "en"}, {**ROW, "language": None}]
    spec = IngestSpec(kind="pairs", layout=own, test=0.0)
    report = ingest(Run(tmp_path / "run"), [write(*rows)], spec).report
    assert report.rows_in == 3
    assert report.dropped == {"not English": 1, "duplicate": 1}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("promt: {text: a}", 'unknown key "promt"'),
        ("prompt: {txt: a}", 'unknown key "prompt.txt"'),
        ("verdicts: [{column: a, cast: eval}]", "verdicts.0.cast: Input should be 'words'"),
        ("responses: [{kind: chosen}]", "responses.0: a response has either column or each"),
        ("[1, 2]", "a layout is a mapping of prompt, responses, verdicts"),
        ("prompt: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("prompt: {text: a", "is not YAML"),
        ("tags: &a [*a]", "tags.0: Input should be a valid string"),
    ],
)
def test_a_broken_layout_says_where(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        named_map(str(tmp_path / "own.yaml"))
    assert str(tmp_path / "own.yaml") in str(caught.value)
    assert problem in str(caught.value)


def test_layouts_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown layout 'nectr'\. Did you mean \"nectar\""):
        named_map("nectr")
    with pytest.raises(InputError, match=r"--layout: there is no file .*none\.yaml"):
        named_map(str(tmp_path / "none.yaml"))


def test_a_layout_in_the_command(tmp_path: Path) -> None:
    (record,) = records(
        [{"a": "Q?", "b": "Aaa"}], layout="{prompt: {text: a}, responses: [{column: b}]}", want="candidates"
    )
    assert shown(record) == "Q? | Aaa"


def test_a_path_that_names_a_column_by_another(own: str) -> None:
    with pytest.raises(BadRows, match=r"f:2: .*third"):
        list(records([ROW, {**ROW, "better_one": "third"}], layout=own))


def test_empty_and_none_are_absent(tmp_path: Path) -> None:
    text = "{prompt: {text: a, system: none_such, then: }, responses: [{column: b, model: ''}], tags: }"
    (record,) = records([{"a": "Q?", "b": "Aaa", "system": "x"}], layout=text, want="candidates", ignore=("system",))
    assert shown(record) == "Q? | Aaa"


def test_two_layouts_that_fit_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {**MAPS["nectar"].example[0], "context": [], "response1": "a", "response2": "b", "overall_preference": 1}
    with pytest.raises(InputError, match=r"could be read as helpsteer3 or nectar\. Choose one with --layout NAME"):
        list(records([both]))
