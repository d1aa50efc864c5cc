"""docs/formats.md: each layout is listed under the command that reads it, and that command reads it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from prefdata.exports.registry import dialects
from prefdata.formats.layout_maps import FIELDS, Cast, PromptMap, ResponseMap, VerdictMap, built_in
from prefdata.pairs.pair import pair
from prefdata.prompts.ingest import ingest
from prefdata.specs import IngestSpec, PairSpec
from prefdata.storage.run import Run

PAGE = (Path(__file__).parents[2] / "docs/formats.md").read_text("utf-8")
MAPS = built_in()


def listed() -> dict[str, str | None]:
    """The command that the page gives for each layout; None where it is refused."""
    sections = re.findall(r"^### (.*)\n((?:(?!^##).*\n)*)", PAGE, flags=re.MULTILINE)
    found: dict[str, str | None] = {}
    for title, body in sections:
        command = re.search(r"`(prefdata .*)`", title)
        found |= dict.fromkeys(re.findall(r"^- `([\w-]+)`: ", body, re.MULTILINE), command and command[1])
    return found


LISTED = listed()


def test_every_layout_is_listed_as_it_is() -> None:
    assert sorted(LISTED) == sorted(MAPS)
    flat = " ".join(PAGE.split())
    for name, one in MAPS.items():
        assert f"- `{name}`: {one.about}{f': {one.refuse}' if one.refuse else ''}" in flat
        assert LISTED[name] == (None if one.refuse else f"prefdata ingest RUN FILE --as {one.reads_as}")


@pytest.mark.parametrize("name", [name for name, command in LISTED.items() if command is not None])
def test_the_command_of_each_layout_reads_it(
    name: str, tmp_path: Path, write: Callable[..., str], prefdata: Callable[..., tuple[int, str, str]]
) -> None:
    file = write(*MAPS[name].example)
    verdicts = [one.name for one in MAPS[name].verdicts or () if one.name]
    more = ["--verdict", verdicts[0]] if verdicts else []
    words = shlex.split(str(LISTED[name]).replace("RUN", str(tmp_path / "run")).replace("FILE", file))
    code, out, err = prefdata(*words[1:], *more)
    assert (code, err) == (0, ""), err
    assert "layout" in out


def test_every_key_of_a_layout_is_explained() -> None:
    keys = [(name, field.description) for one in (PromptMap, ResponseMap, VerdictMap) for name, field in
            one.model_fields.items()]  # fmt: skip
    for name, description in keys:
        assert f"| `{name}` | {description} |" in PAGE
    for name in (*FIELDS, *get_args(Cast)):
        assert f"`{name}`" in PAGE


def test_the_layout_that_it_shows_is_one(tmp_path: Path, write: Callable[..., str], prefdata) -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    layout = tmp_path / "own.yaml"
    layout.write_text(shown, "utf-8")
    row = {
        "case": {"request": "Q?", "rules": "Be brief."}, "first": "Aaa", "second": "Bbb", "wrote": ["m", "n"],
        "stars_second": 2, "winner": 2, "judge": "J", "style": "s", "swapped": True, "genres": ["x"], "internal": 1,
    }  # fmt: skip
    file = write({**row, "language": "en"}, {**row, "language": "fr"})
    code, out, err = prefdata("ingest", tmp_path / "run", file, "--as", "comparisons", "--layout", layout)
    assert code == 0, err
    assert "not English" in out
    assert "not kept" not in out


ROWS = re.findall(r"^\| `([\w-]+)` \| `([\w-]+)` \| (.*) \|$", PAGE.partition("# Data out")[2], re.MULTILINE)


def test_every_dialect_is_listed_as_it_is() -> None:
    assert [
        (one.name, kind, layout.about) for one in dialects().values() for kind, layout in one.layouts.items()
    ] == ROWS


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with rows of every kind."""
    folder = tmp_path_factory.mktemp("exported")
    sides = {"chosen": "The Robot.", "rejected": "No."}
    kinds = {"pairs": sides, "unpaired": {"completion": "A.", "label": True}, "demonstrations": {"completion": "B."}}
    run = Run(folder / "run")
    for kind, row in kinds.items():
        (folder / f"{kind}.jsonl").write_text(json.dumps({"prompt": f"Name {kind}.", **row}))
        ingest(run, [str(folder / f"{kind}.jsonl")], IngestSpec(kind=kind, source=kind))
    ranked = {"prompt": "Rank.", "responses": ["The Robot.", "No."], "rewards": [2.0, 1.0]}
    (folder / "ranked.jsonl").write_text(json.dumps(ranked))
    ingest(run, [str(folder / "ranked.jsonl")], IngestSpec(kind="candidates", source="ranked", score=("rewards",)))
    pair(run, PairSpec(as_="groups", selector="all", name="ranked"))
    return run.path


NAMED = {"candidates": ["--sampler", "ranked-response"]}


@pytest.mark.parametrize(("dialect", "kind"), [row[:2] for row in ROWS])
def test_the_command_of_each_dialect_writes_it(
    dialect: str, kind: str, exported: Path, tmp_path: Path, prefdata: Callable[..., tuple[int, str, str]]
) -> None:
    words = f"export {exported} --to {tmp_path}/out --dialect {dialect} --as {kind}".split()
    code, _, err = prefdata(*words, *NAMED.get(kind, []))
    assert code == 0, err
    assert list((tmp_path / "out").rglob("t*-00000-of-00001.*"))
