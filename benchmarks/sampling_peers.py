"""One job by prefdata, distilabel and a plain script, against an OpenAI-compatible server: seconds, lines, kill -9.

    python benchmarks/sampling_peers.py --base-url http://127.0.0.1:8000/v1 [--distilabel VENV/bin/python]

The job: 4 answers to each of 400 prompts of the sample data, 64 tokens at most, stored on disk. The server must serve
the bundled policy under the name `policy` (`vllm serve sample_data/policy --served-model-name policy`). Then each is
killed with SIGKILL half-way and started again: what is on disk afterwards is counted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from prefdata import sample_data

DATA = Path(sample_data.__file__).parent
PROMPTS, N, TOKENS = 400, 4, 64

PLAIN = """
import asyncio, json, sys
from openai import AsyncOpenAI

async def main(url, prompts, out):
    client = AsyncOpenAI(base_url=url, api_key="-")
    rows = [json.loads(line) for line in open(prompts)]
    async def ask(row):
        said = await client.chat.completions.create(
            model="policy", messages=row["messages"], n=%(n)d, max_tokens=%(tokens)d, temperature=1.0)
        return {"messages": row["messages"], "answers": [c.message.content for c in said.choices]}
    answers = await asyncio.gather(*map(ask, rows))
    with open(out, "w") as file:
        for row in answers:
            file.write(json.dumps(row) + "\\n")

asyncio.run(main(*sys.argv[1:4]))
"""

DISTILABEL = """
import json, sys
from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import ChatGeneration, TextGeneration

def main(url, prompts, out):
    rows = [{"instruction": json.loads(line)["messages"][-1]["content"]} for line in open(prompts)]
    with Pipeline(name="job", cache_dir=out + "-cache") as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=16)
        llm = OpenAILLM(model="policy", base_url=url, api_key="-",
                        generation_kwargs={"max_new_tokens": %(tokens)d, "temperature": 1.0})
        load >> TextGeneration(llm=llm, num_generations=%(n)d, input_batch_size=16)
    pipeline.run(use_cache=True)["default"]["train"].to_json(out)

if __name__ == "__main__":
    main(*sys.argv[1:4])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--distilabel", help="a Python that has distilabel[openai]")
    said = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        lines = (DATA / "prompts.jsonl").read_text("utf-8").splitlines()[:PROMPTS]
        (home / "prompts.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        jobs = {"prefdata": prefdata(said.base_url), "plain script": script(home, "plain", PLAIN, sys.executable, said)}
        if said.distilabel:
            jobs["distilabel"] = script(home, "peer", DISTILABEL, said.distilabel, said)
        print(f"{'':<14} {'seconds':>8} {'lines':>6}   after SIGKILL half-way and the same command again")
        for name, (command, size, rows) in jobs.items():
            first, again = home / name.replace(" ", "-"), home / f"{name.replace(' ', '-')}-killed"
            began = time.monotonic()
            done = subprocess.run(command(first), cwd=home, shell=True, capture_output=True, text=True, timeout=600)
            seconds = time.monotonic() - began
            if done.returncode:
                print(f"{name:<14} failed: {done.stderr.strip().splitlines()[-1][:100]}", flush=True)
                continue
            print(f"{name:<14} {seconds:>8.1f} {size:>6}   {killed(command, again, home, seconds, rows)}", flush=True)


def prefdata(url: str):
    bin = Path(sys.executable).parent / "prefdata"

    def command(run: Path) -> str:
        sample = f"--engine openai --base-url {url} --model policy -n {N} --max-tokens {TOKENS} --name policy"
        return f"{bin} ingest {run} prompts.jsonl && exec {bin} sample {run} {sample}"

    def rows(run: Path) -> int:
        import polars as pl

        parts = list(run.glob("candidates/*/part-*.parquet"))
        return pl.read_parquet(parts, hive_partitioning=False)["candidate_id"].n_unique() if parts else 0

    return command, 2, rows


def script(home: Path, name: str, text: str, python: str, said):
    (home / f"{name}.py").write_text(text % {"n": N, "tokens": TOKENS})

    def rows(out: Path) -> int:
        if not out.is_file():
            return 0
        lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
        return sum(len(row.get("answers", row.get("generation", ""))) if "answers" in row else 1 for row in lines)

    def command(out: Path) -> str:
        return f"exec {python} {name}.py {said.base_url} prompts.jsonl {out}"

    return command, len(text.strip().splitlines()), rows


def killed(command, out: Path, home: Path, seconds: float, rows) -> str:
    """What is there after a kill half-way, and how long the same command then takes."""
    process = subprocess.Popen(command(out), cwd=home, shell=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(seconds * 0.7)
    subprocess.run(["pkill", "-KILL", "-P", str(process.pid)], check=False)
    process.kill()
    process.wait()
    kept = rows(out)
    began = time.monotonic()
    try:
        done = subprocess.run(command(out), cwd=home, shell=True, capture_output=True, timeout=max(120, 5 * seconds))
        ended = f"exit {done.returncode} after {time.monotonic() - began:.1f} s"
    except subprocess.TimeoutExpired:
        ended = f"hangs (stopped after {time.monotonic() - began:.0f} s)"
    return f"{kept} of {PROMPTS * N} answers kept; then {ended}, {rows(out)} answers"


if __name__ == "__main__":
    main()
