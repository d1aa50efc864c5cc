"""Ingest of conversations and of pairs, and export of pairs, against `datasets`.

Ingest of JSONL against `datasets.load_dataset("json")` and a map to the same rows; export to Parquet against
`Dataset.to_parquet` of the same rows.

    python benchmarks/formats.py [--rows 50000,200000] [--rounds 3] [--pairs 1000000] [--folder DIR]

The files are written first, of random words: conversations of four turns (430 words) and pairs (190 words). Each
measurement has a process of its own, imports included: seconds on the clock, CPU seconds (user and system, all
threads), and the peak memory by the kernel's figure. The two sides are measured alternately, and medians printed. The
map makes what ingest makes: the prompt without its last turn, the reference, the id by the hash of the messages, and
the split by the hash of the id. Its caches are new each time.

`Dataset.to_parquet` is given the rows as they are exported, in an Arrow file: it does not join them, nor sort.

`--pairs N` then reads N pairs once and exports them, and shows the peak memory beside the size of the file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import random
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

WORDS = [f"word{number}" for number in range(5000)]
Figures = tuple[float, float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="50000,200000", help="sizes of the files")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=1_000_000, help="pairs that are read once (0: none)")
    parser.add_argument("--folder", type=Path, default=None)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        for rows in map(int, asked.rows.split(",")):
            for kind, ways in WAYS.items():
                file = Path(folder) / f"{kind}.jsonl"
                written(file, kind, rows)
                compare(file, kind, rows, ways, asked.rounds)
                if kind == "pairs":
                    prepared(file)
                    compare(file, "pairs out", rows, OUT, asked.rounds)
                file.unlink()
        if asked.pairs:
            file = Path(folder) / "pairs.jsonl"
            written(file, "pairs", asked.pairs)
            for name, way in {"in": prepared_run, "out": exported}.items():
                seconds, cpu, peak = measured(way, file, "pairs")
                print(f"{asked.pairs:,} pairs, {file.stat().st_size / 1e6:,.0f} MB, {name}: {seconds:.1f} s,"
                      f" {cpu:.1f} CPU s, peak {peak:,.0f} MB")  # fmt: skip


def compare(file: Path, kind: str, rows: int, ways: dict[str, Callable[[Path, str], None]], rounds: int) -> None:
    """Measure the ways alternately, and print their medians."""
    found: dict[str, list[Figures]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(measured(way, file, kind))
    print(f"\n{rows:,} {kind}, {file.stat().st_size / 1e6:,.0f} MB\n")
    print("| | seconds | CPU s | peak MB | rows/s |\n|---|--:|--:|--:|--:|")
    median = {name: [statistics.median(column) for column in zip(*some, strict=True)] for name, some in found.items()}
    for name, (seconds, cpu, peak) in median.items():
        print(f"| {name} | {seconds:.2f} | {cpu:.2f} | {peak:,.0f} | {rows / seconds:,.0f} |")
    ours, *others = median.values()
    for name, other in zip(list(median)[1:], others, strict=True):
        pairs = zip(found[name], next(iter(found.values())), strict=True)
        ratios = [theirs[0] / own[0] for theirs, own in pairs]
        print(f"\n{name} takes {statistics.median(ratios):.2f} times as long ({min(ratios):.2f} to {max(ratios):.2f}),"
              f" {other[1] / ours[1]:.2f} times the CPU seconds")  # fmt: skip


def measured(way: Callable[[Path, str], None], file: Path, kind: str) -> Figures:
    """Run it in a process of its own: seconds, CPU seconds, peak memory in MB."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_timed, args=(theirs, way, file, kind))
    process.start()
    figures: Figures = ours.recv()
    process.join()
    return figures


def _timed(pipe: Any, way: Callable[[Path, str], None], file: Path, kind: str) -> None:
    began = time.perf_counter()
    way(file, kind)
    used = resource.getrusage(resource.RUSAGE_SELF)
    pipe.send((time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1000))


def ingested(file: Path, kind: str) -> None:
    """By prefdata: prompts with references, or pairs."""
    from prefdata.prompts.ingest import ingest
    from prefdata.specs import IngestSpec
    from prefdata.storage.run import Run

    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        read = "prompts" if kind == "conversations" else "pairs"
        ingest(Run(Path(folder) / "run"), [str(file)], IngestSpec(kind=read))


def mapped(file: Path, kind: str) -> None:
    """By datasets: loaded, and mapped to the same rows."""
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        rows = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=folder)
        make = conversation_row if kind == "conversations" else pair_row
        rows.map(make, remove_columns=rows.column_names, cache_file_name=f"{folder}/mapped.arrow")
        shutil.rmtree(folder, ignore_errors=True)


def prepared_run(file: Path, kind: str) -> None:
    """The pairs as a run beside the file."""
    from prefdata.prompts.ingest import ingest
    from prefdata.specs import IngestSpec
    from prefdata.storage.run import Run

    shutil.rmtree(file.with_suffix(".run"), ignore_errors=True)
    ingest(Run(file.with_suffix(".run")), [str(file)], IngestSpec(kind="pairs", test=0.0))


def prepared(file: Path) -> None:
    """The pairs as a run, and as `datasets` keeps what export writes of it."""
    import datasets

    prepared_run(file, "pairs")
    exported(file, "pairs")
    out = str(file.with_suffix(".out"))
    datasets.load_dataset(out, split="train", cache_dir=f"{out}.cache").save_to_disk(str(file.with_suffix(".arrow")))


def exported(file: Path, kind: str) -> None:
    """By prefdata: the run's pairs, joined with their prompts and responses, sorted and written."""
    from prefdata.exports.export import export
    from prefdata.specs import ExportSpec
    from prefdata.storage.run import Run

    shutil.rmtree(file.with_suffix(".out"), ignore_errors=True)
    export(Run(file.with_suffix(".run")), ExportSpec(), file.with_suffix(".out"))


def saved(file: Path, kind: str) -> None:
    """By datasets: the same rows, written as they are."""
    import datasets

    datasets.disable_progress_bars()
    datasets.load_from_disk(str(file.with_suffix(".arrow"))).to_parquet(str(file.with_suffix(".parquet")))


def key(messages: list[dict[str, Any]]) -> str:
    """The id of a prompt."""
    return hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()[:20]


def split(prompt_id: str) -> str:
    """The split of a prompt."""
    return "test" if int(hashlib.sha256(prompt_id.encode()).hexdigest()[:8], 16) < 0.1 * 2**32 else "train"


def conversation_row(row: dict[str, Any]) -> dict[str, Any]:
    """A prompt and its reference."""
    *messages, last = row["messages"]
    prompt_id = key(messages)
    return {"prompt_id": prompt_id, "messages": messages, "reference": last["content"], "split": split(prompt_id)}


def pair_row(row: dict[str, Any]) -> dict[str, Any]:
    """A pair with its prompt, and the ids of its parts."""
    prompt_id = key(row["prompt"])
    sides = {side: row[side][0]["content"] for side in ("chosen", "rejected")}
    ids = {f"{side}_id": key([prompt_id, text]) for side, text in sides.items()}  # type: ignore[list-item]
    return {"prompt_id": prompt_id, "prompt": row["prompt"], **sides, **ids, "split": split(prompt_id)}


WAYS: dict[str, dict[str, Callable[[Path, str], None]]] = {
    kind: {"prefdata ingest": ingested, "load_dataset and map": mapped} for kind in ("conversations", "pairs")
}

OUT = {"prefdata export": exported, "Dataset.to_parquet": saved}


def written(file: Path, kind: str, rows: int) -> None:
    """Write a file of random rows."""
    with file.open("w") as out:
        for row in conversations(rows) if kind == "conversations" else pairs(rows):
            out.write(f"{json.dumps(row)}\n")


def _text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(WORDS, k=words))


def conversations(rows: int) -> Iterator[dict[str, Any]]:
    """Four turns each, the last the assistant's."""
    draw = random.Random(0)
    for number in range(rows):
        turns = [("user", 30), ("assistant", 160), ("user", 20), ("assistant", 220)]
        yield {"messages": [{"role": r, "content": f"{number} {_text(draw, words)}"} for r, words in turns]}


def pairs(rows: int) -> Iterator[dict[str, Any]]:
    """Prompts of one turn, each with two responses."""
    draw = random.Random(0)
    for number in range(rows):
        prompt = [{"role": "user", "content": f"{number} {_text(draw, 30)}"}]
        sides = {s: [{"role": "assistant", "content": _text(draw, 80)}] for s in ("chosen", "rejected")}
        yield {"prompt": prompt, **sides}


if __name__ == "__main__":
    main()
