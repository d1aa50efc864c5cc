"""The embedded engine against the usual loop: tokens a second, both alternately in one process.

python benchmarks/sampling_transformers.py [--model FOLDER] [--prompts 192] [-n 8] [--max-tokens 96] [--rounds 3]

The usual loop is `model.generate(do_sample=True, top_k=0, num_return_sequences=N)` over prompts in input order, 32 at a
time, padded on the left. Both sides start from conversations and end with texts; tokens after an end token do not
count. A model without a chat template continues texts of mixed lengths.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import torch

from prefdata import sample_data
from prefdata.engines.hf.generator import TransformersGenerator
from prefdata.engines.protocol import Completion, Request, Sampling
from prefdata.ids import seed
from prefdata.models.files import identify

DATA = Path(sample_data.__file__).parent
BATCH = 32


def conversations(count: int, *, template: bool) -> list[list[dict[str, str]]]:
    """Prompts of the sample data, or the beginnings (4 to 60 words) of its answers as plain texts."""
    name = "prompts" if template else "demonstrations"
    rows = [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text("utf-8").splitlines()]
    picked = random.Random(0).choices(rows, k=count)
    if template:
        return [row["messages"] for row in picked]
    lengths = random.Random(1)
    texts = [" ".join(m["content"] for m in row["messages"]).split()[: lengths.randint(4, 60)] for row in picked]
    return [[{"role": "user", "content": " ".join(words)}] for words in texts]


def ours(engine: TransformersGenerator, prompts: list[list[dict[str, str]]], n: int, most: int, run: int) -> int:
    """Tokens drawn by the engine."""
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=most)
    requests = (
        Request(f"{i}/{k}", ids, seed(run, i, k), sampling)
        for i, ids in enumerate(map(engine.render, prompts))
        for k in range(n)
    )
    return sum(len(a.token_ids or ()) for a in engine.generate(requests) if isinstance(a, Completion))


def usual(engine: TransformersGenerator, prompts: list[list[dict[str, str]]], n: int, most: int, run: int) -> int:
    """Tokens drawn by the usual loop on the same network, tokenizer and prompts."""
    net, tokenizer, chat = engine._net, engine.chat.tokenizer, engine.chat
    tokenizer.padding_side = "left"
    ends = set(engine._ends.tolist())
    torch.manual_seed(run)
    total = 0
    for at in range(0, len(prompts), BATCH):
        ids = [list(chat.prompt_ids(prompt)) for prompt in prompts[at : at + BATCH]]
        batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(engine.device)
        with torch.inference_mode():
            out = net.generate(
                **batch, do_sample=True, top_k=0, num_return_sequences=n, max_new_tokens=most, eos_token_id=list(ends)
            )
        for row in out[:, batch["input_ids"].shape[1] :].tolist():
            total += next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DATA / "policy"), help="a model's folder")
    parser.add_argument("--prompts", type=int, default=192)
    parser.add_argument("-n", type=int, default=8, help="answers a prompt")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    said = parser.parse_args()
    engine = TransformersGenerator(identify(said.model, "causal-lm"), dtype="float32")
    prompts = conversations(said.prompts, template=engine.chat.template is not None)
    rates: dict[str, list[float]] = {"the usual loop": [], "prefdata": []}
    for run in range(said.rounds + 1):  # the first round warms up
        for name, side in (("the usual loop", usual), ("prefdata", ours)):
            began = time.perf_counter()
            tokens = side(engine, prompts, said.n, said.max_tokens, run)
            if run:
                rates[name].append(tokens / (time.perf_counter() - began))
    lengths = sorted(len(engine.render(prompt)) for prompt in prompts)
    print(
        f"{Path(said.model).name}: {said.prompts} prompts of {lengths[0]} to {lengths[-1]} tokens x {said.n}, "
        f"at most {said.max_tokens} tokens, {engine.device.type}, {torch.get_num_threads()} threads\n"
    )
    ratio = statistics.median(b / a for a, b in zip(*rates.values(), strict=True))
    print("| | tokens/s, median | ratio |\n|---|--:|--:|")
    for name, values in rates.items():
        print(f"| {name} | {statistics.median(values):,.0f} | {ratio if name == 'prefdata' else 1:.2f} |")


if __name__ == "__main__":
    main()
