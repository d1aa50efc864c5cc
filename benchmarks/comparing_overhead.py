"""What `prefdata rank --pairwise` costs beside its judge: comparisons a second and memory with a null judge.

    python benchmarks/comparing_overhead.py [--prompts 20000,200000] [--schedule all]

Four answers of 600 characters to each prompt. The null judge prefers the answer shown first. Everything else is the
real thing: candidates and prompts read from Parquet, the schedule in both orders, claims, rows, parts, the account.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterable, Iterator

ANSWERS = 4
BATCH = 5_000


class NullComparer:
    """A Comparer that likes the first place."""

    annotator, notes = "null", ()
    versions: dict[str, str] = {}

    def compare(self, matches: Iterable) -> Iterator:
        from prefdata.scorers.protocol import Verdict

        for match in matches:
            yield Verdict(match.key, 0.75, "first", None, f"{len(match.shown)}, {len(match.other)}")

    def close(self) -> None:
        pass


def make(folder: str, prompts: int) -> None:
    from prefdata import IngestSpec, Run, ids
    from prefdata.storage.report import Report
    from prefdata.storage.run import Lineage
    from prefdata.storage.schemas import CANDIDATES, PROMPTS

    partitions = Run(folder).partition("prompts", "many"), Run(folder).partition("candidates", "many")
    for partition in partitions:
        partition.begin(Lineage.of(IngestSpec()))
    for numbers in (range(at, min(at + BATCH, prompts)) for at in range(0, prompts, BATCH)):
        asked = [
            {
                "prompt_id": ids.digest(number),
                "messages": [{"role": "user", "content": f"Write a review of film {number} about a stray dog."}],
                "tags": [],
                "split": "train",
            }
            for number in numbers
        ]
        same = {"model": "m", "engine": "ingest", "status": "ok", "round": 0}
        said = [
            {
                **same,
                "candidate_id": ids.digest([number, index]),
                "prompt_id": ids.digest(number),
                "sample_index": index,
                "text": f"{number} {index} " + "sober " * 100,
            }
            for number in numbers
            for index in range(ANSWERS)
        ]
        partitions[0].append(PROMPTS.from_rows(asked))
        partitions[1].append(CANDIDATES.from_rows(said))
    for partition, rows in zip(partitions, (prompts, prompts * ANSWERS), strict=True):
        partition.finish(Report(step="ingest", unit="rows", rows_in=rows, rows_out=rows))


def measure(folder: str, schedule: str, answer) -> None:
    import prefdata.comparisons as step
    from prefdata import RankSpec, Run

    step.open_comparer = lambda spec: NullComparer()
    step.scorer_identity = lambda spec: {"pairwise": "null"}
    spec = RankSpec(pairwise="null", schedule=schedule, name="null")
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.monotonic()
    done = step.compare(Run(folder), spec)
    seconds = time.monotonic() - began
    assert step.compare(Run(folder), spec).did == "kept"
    answer.put((done.report.rows_out, seconds, loaded, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", default="20000,200000")
    parser.add_argument("--schedule", default="all", choices=["all", "first-round", "tournament"])
    said = parser.parse_args()
    print(f"{'prompts':>10} {'comparisons':>12} {'a second':>10} {'seconds':>9} {'peak memory (MB)':>18} {'before':>8}")
    context = multiprocessing.get_context("spawn")
    for prompts in map(int, said.prompts.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            answer = context.Queue()
            for work in (
                context.Process(target=make, args=(folder, prompts)),
                context.Process(target=measure, args=(folder, said.schedule, answer)),
            ):
                work.start()
                work.join()
            rows, seconds, loaded, peak = answer.get(timeout=5)
        print(f"{prompts:>10,} {rows:>12,} {rows / seconds:>10,.0f} {seconds:>9.1f} {peak:>18,.0f} {loaded:>8,.0f}")


if __name__ == "__main__":
    main()
