"""select and pair at scale: seconds and memory from Parquet to Parquet, against a Python loop, pandas and Polars.

    python benchmarks/selection.py [--prompts 1562,15625,156250,1000000] [--candidates 64] [--rounds 3] [--folder DIR]

For each size a run of that many prompts is written first (random ids, texts and scores, in parts of 100,000 rows), and
each measurement has a process of its own: seconds on the clock, CPU seconds (user and system), and the peak memory by
the kernel's figure. Steps are measured alternately, and the medians printed. Then, on one size in memory, the rules
alone against other ways to write them.

- end to end: `prefdata select --method rso --k 8`, `prefdata pair --strategy first-round` of what was selected; and
  best-worst pairing among all scored candidates, beside the time to scan the columns that it needs and to write its
  pairs, and the same command again, which finds that nothing changed. Up to ten million scores also the same pairs by
  one Polars query that groups, in any order and in runs; and the steps on scores of which a prompt's rows are scattered
  over all parts, so that they have to be sorted.
- Algorithm 1 as the paper has it, a Python loop over prompts: from a list of scores to the accepted.
- best-worst: pandas' groupby-apply, and the best plain Polars that we could write for the same pairs: as one query, and
  by finding the rows of these pairs as numbers and gathering what they hold; both for prompts whose rows are anywhere,
  and for those whose rows are known to be together ("in runs"). prefdata takes rows in any order.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from prefdata import PairSpec, Run, SelectSpec, pair, select
from prefdata.pairs.pair import make_pairs, pair_ids
from prefdata.parallel import prefetch_map, usable_cores
from prefdata.scored.reader import BATCH_ROWS
from prefdata.selections.rules import algorithm1_ranks, gumbel_ranks
from prefdata.specs import Spec
from prefdata.storage.queries import candidate_files
from prefdata.storage.report import Report, ReportBuilder
from prefdata.storage.run import Lineage
from prefdata.storage.schemas import TABLES

PART = 100_000
PROMPTS = 100_000
LOOP_PROMPTS = 2_000

Way = Callable[[], Any]
Timer = Callable[[], tuple[float, float]]


def main() -> None:
    """Print one table a question."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", default="1562,15625,156250,1000000")
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the runs are made (a temporary folder unless given)")
    parser.add_argument("--rules", action=argparse.BooleanOptionalAction, default=True, help="the rules alone as well")
    said = parser.parse_args()
    if said.rules:
        rules(said.candidates)
    print(f"\n{'scores':>12} {'step':<34} {'seconds':>8} {'CPU s':>7} {'rows/s':>12} {'MB':>7}")
    for prompts in map(int, said.prompts.split(",")):
        folder = Path(tempfile.mkdtemp(dir=said.folder))
        try:
            rows = prompts * said.candidates
            alone(build, folder, prompts, said.candidates)
            _steps(folder, rows, STEPS | QUERIES if rows <= LARGEST_QUERY else STEPS, said.rounds)
            if rows <= LARGEST_QUERY:
                alone(scatter, folder)
                _steps(folder, rows, SCATTERED, said.rounds)
        finally:
            shutil.rmtree(folder)


def _steps(folder: Path, rows: int, steps: Steps, rounds: int) -> None:
    """Every step alternately, and the medians of its seconds."""
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, (makes, step) in steps.items():
            if makes is not None:
                shutil.rmtree(folder / makes, ignore_errors=True)
            found[name].append(alone(step, folder))
    for name, measured in found.items():
        seconds, cpu = (statistics.median(one[which] for one in measured) for which in (0, 1))
        peak = max(one[2] for one in measured)
        print(f"{rows:>12,} {name:<34} {seconds:>8.2f} {cpu:>7.2f} {rows / seconds:>12,.0f} {peak:>7,}", flush=True)


def alone(work: Callable[..., None], *arguments: Any) -> tuple[float, float, int]:
    """Seconds, CPU seconds and peak megabytes of a function in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measured, (work, *arguments))


def _measured(work: Callable[..., None], *arguments: Any) -> tuple[float, float, int]:
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    work(*arguments)
    seconds, used = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return seconds, cpu, int(peak.split()[1]) // 1024


class _Made(Spec):
    step = "made"


DONE = Report(step="made", unit="rows", rows_in=0, rows_out=0)


def build(folder: Path, prompts: int, each: int) -> None:
    """A run of random scores, as sample and rank would leave it; the same for the same size."""
    run, numbers = Run(folder), np.random.default_rng(prompts)
    ids = _ids(numbers, prompts)
    for table, name in (("candidates", "policy"), ("scores", "reward")):
        run.partition(table, name).begin(Lineage.of(_Made()))
    for start in range(0, prompts, PART // each):
        some = ids[start : start + PART // each]
        rows = len(some) * each
        columns = {"candidate_id": _ids(numbers, rows), "prompt_id": some.gather(np.repeat(np.arange(len(some)), each))}
        words = pl.Series(numbers.integers(0, 10**6, (4, rows)).tolist())
        score = pl.Series(numbers.normal(size=rows))
        index = pl.Series(np.tile(np.arange(each, dtype=np.int32), len(some)))
        text = pl.select(pl.concat_str(pl.lit("A film about"), *words, separator=" ")).to_series()
        known = {
            "sample_index": index,
            "text_key": pl.Series(numbers.integers(-(2**63), 2**63, rows)),
            "chars": text.str.len_chars(),
            "finish_reason": pl.lit("stop"),
        }
        _append(run, "candidates", "policy", columns, text=text, **known)
        _append(
            run, "scores", "reward", columns, score=score, text_hash=columns["candidate_id"],
            sampler=pl.lit("policy"), **known,
        )  # fmt: skip
    run.partition("candidates", "policy").finish(DONE)
    run.partition("scores", "reward").finish(DONE, candidate_files(run))


def scatter(folder: Path) -> None:
    """The same scores by turns, so that each prompt has one row in each part or two."""
    run = Run(folder)
    scores = run.partition("scores", "reward")
    rows = pl.DataFrame(scores.read()).sort("sample_index", maintain_order=True)
    scores.begin(Lineage.of(_Made()), replace=True)
    for some in rows.iter_slices(PART):
        scores.append(some.to_arrow())
    scores.finish(DONE, candidate_files(run))


def _ids(numbers: np.random.Generator, count: int) -> pl.Series:
    digits = numbers.bytes(count * 10).hex()
    return pl.Series(pa.Array.from_buffers(pa.string(), count, [None, _offsets(count), pa.py_buffer(digits.encode())]))


def _offsets(count: int) -> pa.Buffer:
    return pa.py_buffer((np.arange(count + 1) * 20).astype(np.int32))


def _append(run: Run, table: str, name: str, columns: dict[str, pl.Series], **more: Any) -> None:
    defaults = {pa.int32(): 0, pa.int64(): 0, pa.string(): "stop", pa.float64(): 0.0}
    rows = pl.DataFrame(columns).with_columns(**more)
    absent = [field for field in TABLES[table].schema if not field.nullable and field.name not in rows.columns]
    rows = rows.with_columns(pl.lit(defaults[field.type]).alias(field.name) for field in absent)
    run.partition(table, name).append(rows.to_arrow())


def _rso(folder: Path) -> None:
    select(Run(folder), SelectSpec(method="rso", k=8))


def _first_round(folder: Path) -> None:
    pair(Run(folder), PairSpec(strategy="first-round"))


def _best_worst(folder: Path) -> None:
    pair(Run(folder), PairSpec(selector="all", name="best-worst"))


NEEDED = ["candidate_id", "prompt_id", "score", "sample_index", "finish_reason", "text_key", "chars"]
"""What best-worst pairing reads."""


def _scan_and_write(folder: Path) -> None:
    """What best-worst pairing cannot do without: its columns read, its pairs written."""
    for part in sorted(folder.glob("scores/*/part-*.parquet")):
        pl.read_parquet(part, columns=NEEDED, hive_partitioning=False)
    pairs = pl.read_parquet(sorted(folder.glob("pairs/pairing=best-worst/part-*.parquet")), hive_partitioning=False)
    pairs.write_parquet(folder / "written.parquet")


def _by_polars(folder: Path, *, in_runs: bool) -> None:
    """The same pairs, by one query."""
    scores = pl.scan_parquet(sorted(folder.glob("scores/*/part-*.parquet")), hive_partitioning=False)
    rows = scores.select(NEEDED).with_columns(excluded=pl.lit(None, pl.String))
    _identified(_expression(rows, in_runs=in_runs).collect()).write_parquet(folder / "by-polars.parquet")


Steps = dict[str, tuple[str | None, Callable[[Path], None]]]

STEPS: Steps = {
    "select rso-8": ("selections/selector=rso-8", _rso),
    "pair first-round": ("pairs/pairing=rso-8", _first_round),
    "pair best-worst among all": ("pairs/pairing=best-worst", _best_worst),
    "scan and write for best-worst": (None, _scan_and_write),
    "best-worst, the same again": (None, _best_worst),
}
"""Steps, each with what it makes, which is removed before."""

QUERIES: Steps = {
    "best-worst by Polars, one query": (None, partial(_by_polars, in_runs=False)),
    "best-worst by Polars, in runs": (None, partial(_by_polars, in_runs=True)),
}
SCATTERED: Steps = {
    "scattered: select rso-8": STEPS["select rso-8"],
    "scattered: pair best-worst": STEPS["pair best-worst among all"],
}
LARGEST_QUERY = 10_000_000
"""Scores that Polars holds in some 3 GB."""


def rules(each: int) -> None:
    """The rules alone, on scores in memory; microseconds a prompt, medians, alternately."""
    numbers = np.random.default_rng(0)
    many, few = numbers.normal(size=(PROMPTS, each)), numbers.normal(size=(LOOP_PROMPTS, each)).tolist()
    coins = numbers.random(many.shape)
    together = [slice(start, start + BATCH_ROWS // each) for start in range(0, PROMPTS, BATCH_ROWS // each)]  # a pool
    ways: dict[str, tuple[int, Way]] = {
        "Algorithm 1, Python loop": (LOOP_PROMPTS, lambda: [algorithm1(scores, 8, 0.5) for scores in few]),
        "rso-algorithm1, many prompts at once": (
            PROMPTS,
            lambda: [algorithm1_ranks(many[some], 0.5, 8, lambda sweep, of=some: coins[of]) for some in together],
        ),
        "rso (Gumbel), many prompts at once": (
            PROMPTS,
            lambda: [gumbel_ranks(many[some], 0.5, coins[some], 8) for some in together],
        ),
    }
    _compare(f"acceptance of 8 of {each}", {name: (n, partial(_timed, way)) for name, (n, way) in ways.items()})
    for by_turns in (False, True):
        pool = _pool(BATCH_ROWS // each, each, by_turns=by_turns)
        for way, in_runs in itertools.product((_polars_expression, _polars_by_number), {False, not by_turns}):
            assert way(pool, in_runs=in_runs)["pair_id"].equals(make_pairs(pool, PairSpec())[0]["pair_id"])
    _in_processes(f"best-worst of {each}, rows in memory", BEST_WORST, each)
    anyhow = {name: way for name, way in BEST_WORST.items() if name in ANYHOW}
    _in_processes(f"the same, rows in turns of the {each}", anyhow, each, by_turns=True)


def _in_processes(
    what: str, ways: dict[str, tuple[int, Callable[[pl.DataFrame], Way]]], each: int, *, by_turns: bool = False
) -> None:
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:  # what one way leaves to the allocator does not slow down the next
        timers: dict[str, tuple[int, Timer]] = {}
        for name, (prompts, ready) in ways.items():
            process = stack.enter_context(context.Pool(1))
            process.apply(_get_ready, (ready, prompts, each, by_turns))
            timers[name] = (prompts, partial(process.apply, _timed))
        _compare(what, timers, rounds=9)


_READY: list[Way] = []
"""What a process of its own does when it is asked."""


def _get_ready(ready: Callable[[pl.DataFrame], Way], prompts: int, each: int, by_turns: bool) -> None:
    _READY.append(ready(_pool(prompts, each, by_turns=by_turns)))


def _timed(way: Way | None = None) -> tuple[float, float]:
    """Seconds on the clock, and of the cores."""
    way = way or _READY[0]
    began, on_cores = time.perf_counter(), time.process_time()
    way()
    return time.perf_counter() - began, time.process_time() - on_cores


def _compare(what: str, timers: dict[str, tuple[int, Timer]], rounds: int = 5) -> None:
    taken: dict[str, list[list[float]]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, (prompts, timer) in timers.items():
            taken[name].append([seconds / prompts * 1e6 for seconds in timer()])
    medians = {
        name: [statistics.median(values) for values in zip(*times, strict=True)] for name, times in taken.items()
    }
    base, _ = next(iter(medians.values()))
    print(f"\n{what:<44} {'us/prompt':>10} {'times faster':>13} {'CPU us':>8}")
    for name, (median, cpu) in medians.items():
        print(f"{name:<44} {median:>10.2f} {base / median:>13.1f} {cpu:>8.2f}")


def _pandas(pool: pl.DataFrame) -> Way:
    data = pool.select("prompt_id", "candidate_id", "score").to_pandas()
    return lambda: data.groupby("prompt_id").apply(_of_group, include_groups=False)


def _with_polars(write: Callable[..., pl.DataFrame], pool: pl.DataFrame, *, in_runs: bool) -> Way:
    return lambda: write(pool, in_runs=in_runs)


def _ours(pool: pl.DataFrame, workers: int | None = None) -> Way:
    """As `pair` does it: pools of its size, some ahead."""
    each = pool["sample_index"].max() + 1
    pools = list(pool.iter_slices(BATCH_ROWS // each * each))
    return lambda: pl.concat(rows for rows, _ in prefetch_map(pools, _match, workers or usable_cores()))


def _match(pool: pl.DataFrame) -> tuple[pl.DataFrame, ReportBuilder]:
    return make_pairs(pool, PairSpec())


def algorithm1(scores: list[float], k: int, beta: float) -> list[int]:
    """RSO's Algorithm 1 (2309.06657) for one prompt, as it is written there."""
    remaining = dict(enumerate(scores))
    accepted: list[int] = []
    while remaining and len(accepted) < k:
        best = max(remaining.values())
        passed = []
        for candidate, score in remaining.items():
            if np.random.uniform() < np.exp((score - best) / beta):
                accepted.append(candidate)
                passed.append(candidate)
                if len(accepted) == k:
                    break
        for candidate in passed:
            del remaining[candidate]
    return accepted


def _pool(prompts: int, each: int, *, by_turns: bool = False) -> pl.DataFrame:
    """Rows prompt by prompt; or, in every pool, by turns: each prompt's first, then the second of each."""
    numbers = np.random.default_rng(1)
    rows = prompts * each
    pool = pl.DataFrame({"candidate_id": _ids(numbers, rows)}).with_columns(
        prompt_id=_ids(numbers, prompts).gather(np.repeat(np.arange(prompts), each)),
        score=pl.Series(numbers.normal(size=rows)),
        sampler=pl.lit("policy"),
        sample_index=pl.Series(np.tile(np.arange(each, dtype=np.int32), prompts)),
        finish_reason=pl.lit("stop"),
        text_key=pl.int_range(rows, dtype=pl.Int64),
        chars=pl.lit(50, pl.UInt32),
        excluded=pl.lit(None, pl.String),
    )
    if not by_turns:
        return pool
    some = BATCH_ROWS // each
    turns = [np.arange(start * each, min(start + some, prompts) * each) for start in range(0, prompts, some)]
    return pool[np.concatenate([turn.reshape(-1, each).T.ravel() for turn in turns])]


def _of_group(rows: Any) -> Any:
    best, worst = rows.loc[rows["score"].idxmax()], rows.loc[rows["score"].idxmin()]
    return best["candidate_id"], worst["candidate_id"], best["score"] - worst["score"]


def _polars_expression(pool: pl.DataFrame, *, in_runs: bool) -> pl.DataFrame:
    """What `match` makes, as one query that groups by prompt; each side is a struct, by `max_by` and `min_by`."""
    return _identified(_expression(pool.lazy(), in_runs=in_runs).collect())


def _expression(rows: pl.LazyFrame, *, in_runs: bool) -> pl.LazyFrame:
    row = pl.struct(_FIELDS)
    sides = [
        pl.col(side).struct.field(name).alias(f"{side}_{name}") for side in ("chosen", "rejected") for name in _FIELDS
    ]
    query = (
        rows.select(*_able(in_runs=in_runs), *_FIELDS)
        .group_by("group", maintain_order=True)
        .agg(
            pl.col("prompt_id").first(),
            chosen=row.max_by("whole"),
            rejected=row.reverse().min_by(pl.col("able").reverse()),
        )
        .select("prompt_id", *sides)
    )
    return _pairs(query)


def _polars_by_number(pool: pl.DataFrame, *, in_runs: bool) -> pl.DataFrame:
    """What `match` makes: the best and the worst are found as numbers, and what they hold is gathered afterwards."""
    best, worst = pl.col("whole").arg_max(), pl.len() - 1 - pl.col("able").reverse().arg_min()
    grouped = pool.select(*_able(in_runs=in_runs)).with_row_index("at").group_by("group", maintain_order=True)
    at = grouped.agg(best=pl.col("at").get(best, null_on_oob=True), worst=pl.col("at").get(worst, null_on_oob=True))
    sides = [
        pool.select(pl.col(_FIELDS).name.prefix(f"{side}_"))[at[number]]
        for side, number in (("chosen", "best"), ("rejected", "worst"))
    ]
    both = pl.concat([pool.select("prompt_id")[at["worst"]], *sides], how="horizontal")
    return _identified(_pairs(both.lazy()).collect())


_FIELDS = ("candidate_id", "score", "text_key")


def _able(*, in_runs: bool) -> list[pl.Expr]:
    """Scores of who may be rejected (`able`) and chosen (`whole`), and what to group by.

    The rows must stand in the order of generation, which decides ties. Where each prompt's stand together as well
    (`in_runs`), which is not looked at, they are grouped by number many times faster than by name.
    """
    able = pl.col("excluded").is_null() & (pl.col("chars") > 0)
    whole = able & pl.col("finish_reason").ne_missing("length")
    prompt = pl.col("prompt_id")
    return [
        prompt,
        pl.when(able).then("score").alias("able"),
        pl.when(whole).then("score").alias("whole"),
        (prompt.rle_id().set_sorted() if in_runs else prompt).alias("group"),
    ]


def _pairs(both: pl.LazyFrame) -> pl.LazyFrame:
    """Without ties and equal texts, with margins, in the order of prompts."""
    margin = pl.col("chosen_score") - pl.col("rejected_score")
    other = pl.col("chosen_text_key") != pl.col("rejected_text_key")
    kept = both.with_columns(margin=margin).filter((pl.col("margin") > 0) & other)
    return kept.with_columns(probability=1 / (1 + (-pl.col("margin")).exp())).sort("prompt_id")


def _identified(both: pl.DataFrame) -> pl.DataFrame:
    return both.with_columns(pair_ids(both["chosen_candidate_id"], both["rejected_candidate_id"]))


BEST_WORST: dict[str, tuple[int, Callable[[pl.DataFrame], Way]]] = {
    "pandas groupby-apply": (20_000, _pandas),
    "Polars, one expression": (PROMPTS, partial(_with_polars, _polars_expression, in_runs=False)),
    "Polars, rows by number": (PROMPTS, partial(_with_polars, _polars_by_number, in_runs=False)),
    "Polars, one expression, in runs": (PROMPTS, partial(_with_polars, _polars_expression, in_runs=True)),
    "Polars, rows by number, in runs": (PROMPTS, partial(_with_polars, _polars_by_number, in_runs=True)),
    "prefdata, with every proposal's reason": (PROMPTS, _ours),
    "prefdata, in one thread": (PROMPTS, partial(_ours, workers=1)),
}
"""Ways to pair the best with the worst, each with how many prompts it is given."""

ANYHOW = ("Polars, one expression", "Polars, rows by number", "prefdata, with every proposal's reason")
"""Those that do without prompts whose rows stand together, to compare where they do not."""


if __name__ == "__main__":
    main()
