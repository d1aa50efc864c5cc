"""What `prefdata sample` costs beside the engine: candidates a second and memory with an engine that answers at once.

    python benchmarks/sampling_overhead.py [--prompts 10000,100000] [--render]

The null engine returns the same 40 tokens for every request. Everything else is the real thing: prompts read from
Parquet, claims, seeds, ids, rows, parts on disk, the account at the end. With `--render` the prompts are rendered by
the bundled model's chat template and tokenizer as well.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

TEXT = "A sober film about a stray dog, quiet and exact, in which the music says what nobody else will."
IDS = tuple(range(100, 140))
N = 4


class NullGenerator:
    """A Generator that knows its answer already."""

    name, renders, context_length, dtype, template_hash, notes = "null", True, 4096, "none", "", ()
    versions: dict[str, str] = {}

    def __init__(self, model, render: bool) -> None:
        from prefdata.chat.encoder import Chat

        self.model = model
        self._chat = Chat.load(model.folder()) if render else None

    def render(self, messages, tools=None, holds=()) -> tuple[int, ...]:
        return IDS if self._chat is None else self._chat.prompt_ids(messages, tools)

    def generate(self, requests: Iterable) -> Iterator:
        from prefdata.engines.protocol import Completion

        for request in requests:
            yield Completion(request.key, TEXT, IDS, "stop", -12.5)

    def close(self) -> None:
        pass


def measure(prompts: int, render: bool, answer) -> None:
    import polars as pl

    from prefdata import IngestSpec, Run, SampleSpec, ids, sample_data
    from prefdata.candidates.sample import sample_many
    from prefdata.storage.run import Lineage
    from prefdata.storage.schemas import PROMPTS

    model = Path(sample_data.__file__).parent / "policy"
    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder)
        partition = run.partition("prompts", "many")
        partition.begin(lineage := Lineage.of(IngestSpec()))
        for start in range(0, prompts, 20_000):
            rows = [
                {
                    "prompt_id": ids.digest(number),
                    "messages": [{"role": "user", "content": f"Write a review of film {number} about a stray dog."}],
                    "tags": [],
                    "split": "train",
                }
                for number in range(start, min(start + 20_000, prompts))
            ]
            partition.append(PROMPTS.from_rows(rows))
        del rows
        from prefdata.storage.report import Report

        assert lineage
        partition.finish(Report(step="ingest", unit="rows", rows_in=prompts, rows_out=prompts))
        spec = SampleSpec(model=str(model), n=N, max_tokens=64, name="null")
        began = time.monotonic()
        (done,) = sample_many(run, [spec], load=lambda job: NullGenerator(job.files, render))
        seconds = time.monotonic() - began
        assert done.report.rows_out == prompts * N
        stored = pl.scan_parquet(f"{folder}/candidates/*/part-*.parquet").select(pl.len()).collect().item()
        assert stored == prompts * N
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    answer.put((prompts, prompts * N / seconds, seconds, peak))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", default="10000,100000")
    parser.add_argument("--render", action="store_true")
    said = parser.parse_args()
    print(f"{'prompts':>10} {'candidates/s':>14} {'seconds':>9} {'peak memory (MB)':>18}")
    context = multiprocessing.get_context("spawn")
    for prompts in map(int, said.prompts.split(",")):
        answer = context.Queue()
        process = context.Process(target=measure, args=(prompts, said.render, answer))
        process.start()
        process.join()
        number, rate, seconds, peak = answer.get()
        print(f"{number:>10,} {rate:>14,.0f} {seconds:>9.1f} {peak:>18,.0f}", flush=True)


if __name__ == "__main__":
    main()
