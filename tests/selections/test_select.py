"""select from files to files: what is filtered and counted, and when it is made again."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from scored_runs import answer, scored_run, write

from prefdata.errors import InputError, NotReady, UsageError
from prefdata.pairs.pair import pair
from prefdata.scored import reader
from prefdata.selections.select import select
from prefdata.specs import PairSpec, SelectSpec
from prefdata.storage import partition
from prefdata.storage.atomic import this_process
from prefdata.storage.run import Run


def names(prompts: int, *samplers: str, each: int = 4) -> list[dict[str, Any]]:
    """Answers with scores by chance, a prompt after the other."""
    dice = random.Random(3)
    return [
        answer(f"prompt {p}", i, round(dice.gauss(0, 1), 2), sampler=sampler)
        for p in range(prompts)
        for sampler in samplers or ("policy",)
        for i in range(each)
    ]


def rows_of(run: Run, name: str) -> pl.DataFrame:
    return pl.read_parquet(run.path / f"selections/selector={name}/part-*.parquet", hive_partitioning=False)


def texts(run: Run, answers: list[dict[str, Any]], **said: Any) -> tuple[list[str], dict[str, int]]:
    """The texts that are selected, and what was dropped."""
    outcome = select(run, SelectSpec(name="x", **{"method": "top-k", **said}), replace=True)
    text = {one["candidate_id"]: one["text"] for one in answers}
    assert outcome.report.rows_in == outcome.report.rows_out + sum(outcome.report.dropped.values())
    return [text[one] for one in rows_of(run, "x")["candidate_id"]], outcome.report.dropped


def bytes_of(run: Run, name: str) -> list[bytes]:
    return [part.read_bytes() for part in run.partition("selections", name).parts()]


def test_top_k_overall_across_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The highest of the run, of equals those that stand higher with their prompt; ranks have no gaps."""
    monkeypatch.setattr(reader, "BATCH_ROWS", 5)
    answers = [answer(f"p{p}", i, float(10 * (p == 3) + i // 2)) for p in range(9) for i in range(4)]
    run = scored_run(tmp_path / "run", answers)
    report = select(run, SelectSpec(method="top-k-overall", k=7, name="x")).report
    rows = rows_of(run, "x")
    assert sorted(rows["score"], reverse=True) == [11.0, 11.0, 10.0, 10.0, 1.0, 1.0, 1.0]
    assert (rows.group_by("prompt_id").agg(pl.col("rank").sort()).select(
        (pl.col("rank") == pl.int_ranges(1, pl.col("rank").list.len() + 1)).all()
    ).item())  # fmt: skip
    assert rows.filter(pl.col("score") == 1)["prompt_id"].n_unique() == 3
    assert (report.rows_in, report.rows_out, report.dropped) == (36, 7, {"not_selected": 29})
    assert report.figures["prompts_with_answers"] == 4
    assert report.figures["mean_score_after"] == pytest.approx(45 / 7)


def test_replace_makes_anew_what_was_damaged(tmp_path: Path) -> None:
    run = scored_run(tmp_path / "run", names(6))
    assert [select(run, SelectSpec(name="x"), replace=again).did for again in (False, False, True)] == [
        "made",
        "kept",
        "replaced",
    ]
    whole = bytes_of(run, "x")
    (part,) = run.partition("selections", "x").parts()
    part.write_bytes(b"junk")
    with pytest.raises(InputError, match=r"is damaged: .* with --replace"):
        pair(run, PairSpec(selector="x"))
    assert select(run, SelectSpec(name="x"), replace=True).did == "replaced"
    assert bytes_of(run, "x") == whole
    success = part.with_name("_SUCCESS")
    success.write_text("{}")
    with pytest.raises(InputError, match="_SUCCESS is damaged"):
        select(run, SelectSpec(name="x"))
    assert select(run, SelectSpec(name="x"), replace=True).did == "replaced"
    assert pair(run, PairSpec(selector="x")).did == "made"
    assert pair(run, PairSpec(selector="x"), replace=True).did == "replaced"


def test_the_old_one_stays_until_the_new_one_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C, or kill -9, between the two renames."""
    run = scored_run(tmp_path / "run", names(6))
    select(run, SelectSpec(name="x"))
    whole, path = bytes_of(run, "x"), run.partition("selections", "x").path
    renamed = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name.startswith("_new-"):
            raise KeyboardInterrupt
        return renamed(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            select(run, SelectSpec(name="x", k=2), replace=True)
    assert bytes_of(run, "x") == whole
    host, space, *_ = this_process().split("-")
    path.rename(path.with_name(f"_old-{host}-{space}-999999-7-0a0b0c0d-{path.name}"))  # a process that was killed there
    with monkeypatch.context() as patched:
        patched.setattr(partition, "write_parquet", lambda rows, file: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            select(run, SelectSpec(name="x", k=2), replace=True)
    assert bytes_of(run, "x") == whole
    assert [one.name for one in path.parent.iterdir()] == [path.name]


ODD = "\u00a0 \t\n\x1c\u3000"


def test_texts_that_differ_in_white_space_alone_are_one(tmp_path: Path) -> None:
    said = ["a  b", f"a{ODD}b", f"{ODD}a b\r\n", "a b.", "A b", "", ODD, "👩‍👩‍👧", "👩 👩 👧", "é", "e\u0301", "a\x00b"]
    answers = [answer("p", i, float(i), text=text) for i, text in enumerate(said)]
    run = scored_run(tmp_path / "run", answers)
    kept, dropped = texts(run, answers, k=20)
    assert kept == [said[i] for i in (11, 10, 9, 8, 7, 5, 4, 3, 0)]
    assert dropped == {"duplicate": 3}
    assert rows_of(run, "x")["copies"].to_list() == [1, 1, 1, 1, 1, 2, 1, 1, 3]
    assert len(texts(run, answers, k=20, duplicates="keep")[0]) == len(said)


def test_lengths_are_in_characters_without_surrounding_space(tmp_path: Path) -> None:
    said = ["", f"{ODD}ab{ODD}", "👩👩👩", "abcd", "abcde"]
    answers = [answer("p", i, float(i), text=text) for i, text in enumerate(said)]
    run = scored_run(tmp_path / "run", answers)
    assert texts(run, answers, min_chars=2, max_chars=4) == (said[3:0:-1], {"too_long": 1, "too_short": 1})


def test_refusals_by_their_first_words(tmp_path: Path) -> None:
    said = [
        "I CAN’T help with that.",
        "I can't help with that.",
        "Sure! " + "x" * 120 + " I can't help with",
        "很抱歉，不",
    ]
    answers = [answer("p", i, float(i), text=text) for i, text in enumerate([*said, "Yes."])]
    run = scored_run(tmp_path / "run", answers)
    assert texts(run, answers)[1] == {}
    assert texts(run, answers, refusals="drop") == (["Yes.", said[2]], {"refusal": 3})
    mine = tmp_path / "mine.yaml"
    mine.write_text("- 'yes'\n")
    assert texts(run, answers, refusals="drop", refusal_phrases=str(mine)) == (said[::-1], {"refusal": 1})
    once = SelectSpec(name="once", refusals="drop", refusal_phrases=str(mine))
    assert [select(run, once).did, select(run, once).did] == ["made", "kept"]
    mine.write_text("- 'sure'\n")  # the file says something else now
    assert select(run, once).did == "remade"
    assert "Yes." in {one["text"] for one in answers if one["candidate_id"] in rows_of(run, "once")["candidate_id"]}
    for bad in ("[]", "a: 1", "- 1", "- ''"):
        mine.write_text(bad)
        with pytest.raises(UsageError, match="should hold a list of phrases"):
            texts(run, answers, refusals="drop", refusal_phrases=str(mine))


def test_refusals_in_whatever_case_of_whatever_script(tmp_path: Path) -> None:
    said = ["Простите, я не могу", "ПРОСТИТЕ, нет", "простите, нет", "Désolé.", "DÉSOLÉ !", "Да."]
    answers = [answer("p", i, float(i), text=text) for i, text in enumerate(said)]
    run = scored_run(tmp_path / "run", answers)
    mine = tmp_path / "mine.yaml"
    mine.write_text("- простите\n- Désolé\n", encoding="utf-8")
    assert texts(run, answers, refusals="drop", refusal_phrases=str(mine)) == (["Да."], {"refusal": 5})


def test_where_sees_candidates_scores_and_prompts(tmp_path: Path) -> None:
    answers = [*names(3), *names(3, "hot")]
    run = scored_run(tmp_path / "run", answers)
    third = "messages[1].content = 'prompt 2'"
    assert texts(run, answers, where=third)[1] == {"where": 16}
    assert texts(run, answers, where=f"{third} and sampler = 'hot' and sample_index < 2")[1] == {"where": 22}
    assert texts(run, answers, where="score > 100") == ([], {"where": 24})
    assert texts(run, answers, where="split = 'train' and source = 'made' -- all of them")[1] == {}


def test_where_is_asked_again_when_the_prompts_changed(tmp_path: Path) -> None:
    """The rows and their scores are the same; the split of a prompt is another."""
    answers = names(3)
    run = scored_run(tmp_path / "run", answers)
    spec = SelectSpec(where="split = 'train'")
    assert [select(run, spec).did, select(run, spec).did] == ["made", "kept"]
    prompts = pl.read_parquet(run.path / "prompts/source=made/part-*.parquet", hive_partitioning=False).to_dicts()
    write(run, "prompts", "made", [{**one, "split": "test" if i else "train"} for i, one in enumerate(prompts)])
    assert select(run, spec).did == "remade"
    assert rows_of(run, "rso-8")["prompt_id"].n_unique() == 1


@pytest.mark.parametrize(
    "where",
    [
        "split =", "nosuch > 1", "1; drop table scores", "exists (from read_csv('/etc/passwd'))", "score",
        "true) or (false", "random() < 0.5", "score > 0 and current_date > date '2020-01-01'", "NOW() is not null",
        "prompt_id in (select prompt_id from prompts using sample 1)", "score > 1; select 1",
    ],
)  # fmt: skip
def test_a_broken_condition_is_one_line(tmp_path: Path, prefdata, where: str) -> None:
    run = scored_run(tmp_path / "run", names(2))
    code, out, err = prefdata("select", run, "--where", where)
    if where == "score":  # SQL takes a number for a condition
        assert code == 0
        return
    assert (code, out) == (2, "")
    assert err.startswith("prefdata: --where")
    assert err.count("\n") == 1
    if any(name in where.lower() for name in ("random", "current_date", "now", "sample")):
        assert "gives another value each time" in err
    assert 'near ")"' not in err or ")" in where  # no bracket that nobody wrote
    assert not (run.path / "selections").exists()
    assert not list(run.path.glob("_tmp*"))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (("--scorer", "rewrd"), 'Did you mean "reward"'),
        (("--sampler", "polcy"), 'Did you mean "policy"'),
        (("--pool", "mix", "--quota", "polcy=1"), 'Did you mean "policy"'),
        (("--pool", "mix", "--quota", "hot=1", "--sampler", "policy"), "names a sampler 'hot'"),
        (("--pool", "mix", "--quota", "policy"), "SAMPLER=WEIGHT"),
        (("--method", "best-of-n", "--k", "3"), "-k goes with"),
        (("--refusals", "drop", "--refusal-phrases", "nosuch"), "nosuch"),
        (("--k", "0"), "greater than or equal to 1"),
        (("--beta", "nan"), "not nan"),
        (("--beta", "1e-320"), "too small to divide by"),
        (("--name", "all"), "give another"),
        (("--method", "best-of-n", "--improve", "inf"), "finite number"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path: Path, prefdata, said: tuple[str, ...], message: str) -> None:
    run = scored_run(tmp_path / "run", names(2, "policy", "hot"))
    code, out, err = prefdata("select", run, *said)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (run.path / "selections").exists()


def test_null_nan_and_infinite_scores_take_no_part(tmp_path: Path) -> None:
    scores = [None, float("nan"), float("inf"), float("-inf"), 1.0]
    answers = [answer("p", i, score) for i, score in enumerate(scores)] + [answer("q", 0, None), answer("r", 0, -5.0)]
    run = scored_run(tmp_path / "run", answers)
    for method in ("best-of-n", "top-k", "rso", "rso-algorithm1", "boltzmann", "top-k-overall"):
        kept, dropped = texts(run, answers, method=method)
        assert sorted(kept) == ["p policy 4", "r policy 0"]
        assert dropped["no_score"] == 5


def test_numbers_too_large_to_reckon_with_are_no_scores(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    scores = [1e308, -1e308, 1e101, 1e100, -1e100, 0.0]
    answers = [answer("p", i, score) for i, score in enumerate(scores)]
    run = scored_run(tmp_path / "run", answers)
    for method in ("best-of-n", "top-k", "rso", "rso-algorithm1", "boltzmann", "top-k-overall"):
        kept, dropped = texts(run, answers, method=method)
        assert kept[0] == "p policy 3"
        assert dropped["no_score"] == 3
    assert texts(run, answers, method="threshold", threshold=0.4, scale="min-max")[0] == ["p policy 3", "p policy 5"]
    assert not [one for one in recwarn if one.category is RuntimeWarning]


def test_nothing_left_is_an_empty_selection(tmp_path: Path, prefdata) -> None:
    run = scored_run(tmp_path / "run", names(2))
    code, out, _ = prefdata("select", run, "--min-chars", "1000")
    assert code == 0
    assert "8 in, 0 out" in out
    assert rows_of(run, "rso-8").height == 0


def test_one_candidate_a_prompt(tmp_path: Path) -> None:
    answers = names(4, each=1)
    run = scored_run(tmp_path / "run", answers)
    for method in ("best-of-n", "rso", "rso-algorithm1", "top-k-overall"):
        assert len(texts(run, answers, method=method)[0]) == 4


def test_the_pool_of_the_latest_round_is_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for batches that have none of it; of the rounds that take part."""
    monkeypatch.setattr(reader, "BATCH_ROWS", 4)
    answers = [*names(6), answer("prompt 3", 9, 0.5, sampler="later", round=2)]
    run = scored_run(tmp_path / "run", answers)
    assert texts(run, answers, pool="latest") == (["prompt 3 later 9"], {"earlier_round": 24})
    assert texts(run, answers, pool="latest", where="round < 2")[1] == {"where": 1}
    cut = answer("prompt 3", 9, 0.5, sampler="later", round=2, finish_reason="length")
    run = scored_run(tmp_path / "run", [*answers[:-1], cut])
    assert texts(run, answers, pool="latest")[1] == {"truncated": 1}
    assert texts(run, [*answers[:-1], cut], pool="latest", truncated="keep")[1] == {"earlier_round": 24}


def test_a_candidate_that_two_samplers_drew(tmp_path: Path) -> None:
    """By the same law: one score, one row; --sampler finds it under either name."""
    answers = [
        answer("p", i, float(i), sampler=sampler, law="same", text=f"said {i}")
        for sampler in ("a", "b")
        for i in range(3)
    ]
    run = scored_run(tmp_path / "run", answers)
    everything = ["said 2", "said 1", "said 0"]
    assert texts(run, answers) == (everything, {})
    assert texts(run, answers, sampler=("a",)) == (everything, {})
    assert texts(run, answers, sampler=("b",)) == (everything, {})


def test_unfinished_scores_may_have_rows_twice(tmp_path: Path) -> None:
    answers = names(3)
    run = scored_run(tmp_path / "run", answers)
    first, last = {**answers[0], "score": -9.0}, {**answers[0], "score": 9.0}
    write(run, "scores", "reward", [first, *answers[1:6], last], parts=3, done=False)
    with pytest.raises(NotReady, match="unfinished"):
        select(run, SelectSpec())
    report = select(run, SelectSpec(method="top-k"), partial=True).report
    assert (report.rows_in, report.rows_out) == (6, 6)
    assert rows_of(run, "top-k-8")["score"].max() == 9.0


def test_the_same_again_is_kept(tmp_path: Path) -> None:
    answers = names(6)
    run = scored_run(tmp_path / "run", answers)
    of_policy, of_all = SelectSpec(sampler=("policy",), name="policy"), SelectSpec(name="every")
    assert [select(run, spec).did for spec in (of_policy, of_all, of_policy, of_all)] == ["made"] * 2 + ["kept"] * 2
    scored_run(tmp_path / "run", [*answers, *names(6, "another")])
    assert [select(run, spec).did for spec in (of_policy, of_all)] == ["kept", "remade"]
    answers[0]["score"] = 7.0
    scored_run(tmp_path / "run", answers)
    assert [select(run, spec).did for spec in (of_policy, of_all)] == ["remade", "remade"]


def test_what_lies_as_it_did_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command again is done at once; copied files have the same names, and those say what they hold."""
    answers = names(6)
    run = scored_run(tmp_path / "run", answers)
    spec, pairs = SelectSpec(where="split = 'train'", k=2), PairSpec(selector="all", where="split = 'train'")
    assert (select(run, spec).did, pair(run, pairs).did) == ("made", "made")
    opened = []
    real = reader.PromptBatches
    monkeypatch.setattr(reader, "PromptBatches", lambda *given: opened.append(1) or real(*given))
    assert (select(run, spec).did, pair(run, pairs).did) == ("kept", "kept")
    for table in ("scores", "candidates", "prompts"):
        for part in run.path.glob(f"{table}/*/part-*"):
            os.utime(part, ns=(1, 1))
        assert (select(run, spec).did, pair(run, pairs).did) == ("kept", "kept")
    assert not opened
    prompts = pl.read_parquet(run.path / "prompts/source=made/part-*.parquet", hive_partitioning=False).to_dicts()
    write(run, "prompts", "made", [{**one, "split": "test" if i else "train"} for i, one in enumerate(prompts)])
    assert (select(run, spec).did, pair(run, pairs).did) == ("remade", "remade")


def test_a_run_whose_rows_are_few_is_not_touched(tmp_path: Path) -> None:
    run = scored_run(tmp_path / "run", [answer("p", i, float(i)) for i in range(3)])
    select(run, SelectSpec(method="best-of-n"))
    before = run.path.stat().st_mtime_ns
    assert select(run, SelectSpec(method="best-of-n")).did == "kept"
    assert run.path.stat().st_mtime_ns == before
