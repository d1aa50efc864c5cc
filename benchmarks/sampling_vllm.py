"""prefdata sample on vLLM against a bare LLM.generate: tokens a second, both alternately in one process.

    python benchmarks/sampling_vllm.py [--model FOLDER] [--prompts 128] [-n 8] [--max-tokens 96] [--rounds 3]

Both sides have an engine of their own with the same settings, started before the clock. The bare side is given the
token ids and one SamplingParams a request (its own seed, the same limits and log-probabilities) in one call, and keeps
everything in memory. Ours is the whole step: prompts from Parquet, rendering, claims, seeds, ids, rows, parts on disk
and the account.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def main() -> None:
    from prefdata import IngestSpec, Run, SampleSpec, ingest, sample_data
    from prefdata.candidates.sample import sample_many
    from prefdata.engines.open import open_generator
    from prefdata.models.files import identify

    bundled = Path(sample_data.__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(bundled / "policy"))
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("-n", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    said = parser.parse_args()

    spec = SampleSpec(model=said.model, engine="vllm", n=said.n, max_tokens=said.max_tokens, limit=said.prompts)
    ours = open_generator(spec, identify(said.model, "causal-lm"), "vllm")
    import vllm

    bare = vllm.LLM(
        model=said.model,
        dtype=ours.dtype,
        generation_config="vllm",
        logprobs_mode="raw_logprobs",
        enable_chunked_prefill=None if not vllm.platforms.current_platform.is_cpu() else False,
        disable_log_stats=True,
    )
    rates: dict[str, list[float]] = {"LLM.generate": [], "prefdata sample": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(-1, said.rounds):  # the first round warms both engines up and is not counted
            run = Run(f"{folder}/{number}")
            ingest(run, [str(bundled / "prompts.jsonl")], IngestSpec())
            began = time.monotonic()
            (done,) = sample_many(run, [spec.model_copy(update={"seed": number + 1})], load=lambda job: _Open(ours))
            tokens, seconds = done.report.figures["tokens"], time.monotonic() - began
            rows = run.only("candidates").read(["prompt_id", "sample_index", "seed"]).to_pylist()
            prompts = {p["prompt_id"]: p for p in run.only("prompts").read(["prompt_id", "messages"]).to_pylist()}
            rendered = {key: ours.render(prompts[key]["messages"]) for key in {row["prompt_id"] for row in rows}}
            params = [
                vllm.SamplingParams(temperature=1.0, max_tokens=said.max_tokens, seed=row["seed"], logprobs=0)
                for row in rows
            ]
            asked = [vllm.TokensPrompt(prompt_token_ids=list(rendered[row["prompt_id"]])) for row in rows]
            began = time.monotonic()
            outputs = bare.generate(asked, params, use_tqdm=False)
            bare_seconds = time.monotonic() - began
            bare_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
            if number >= 0:
                rates["prefdata sample"].append(tokens / seconds)
                rates["LLM.generate"].append(bare_tokens / bare_seconds)
    ours.close()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    job = f"{said.prompts} prompts x {said.n}, {said.max_tokens} tokens at most, {said.rounds} rounds"
    print(f"{job}, vLLM {vllm.__version__}")
    for name, values in rates.items():
        print(f"{name:<18} {medians[name]:>10,.0f} tokens/s   ({', '.join(f'{v:,.0f}' for v in values)})")
    print(f"ratio              {medians['prefdata sample'] / medians['LLM.generate']:>10.3f}")


class _Open:
    """An engine that stays open when the step closes it."""

    def __init__(self, engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str):
        return getattr(self._engine, name)

    def close(self) -> None:
        pass


if __name__ == "__main__":
    main()
