"""Reward models against the usual ways: texts a second, alternately, each in a process and an environment of its own.

python benchmarks/ranking.py [--model FOLDER] [--prompts 100] [-n 16] [--rounds 5] [--cpu]

prefdata should be at least twice as fast as the pipeline. `--cpu` compares CPU seconds on one thread in one process,
which other work on the machine changes least, and computes whole texts too.

`answers`: the sample data's prompts with 16 answers of its policy, against `pipeline("text-classification",
batch_size=32)` on the same texts in the order of the candidates. `long prompts`: 16 answers of about 200 tokens to
prompts of about 200, against batches sorted by length and padded, on a random model of 8 layers. The limit is the time
that the needed FLOPs (2 a parameter and token, and attention) take at the rate of this machine's matrix product.

prefdata's threads wait as its command line tells them to (`WAITING`), the others' as torch does by itself.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification
from transformers import pipeline as make_pipeline

from prefdata import sample_data
from prefdata.cli.main import WAITING
from prefdata.engines.hf.generator import TransformersGenerator
from prefdata.engines.protocol import Completion, Request, Sampling
from prefdata.ids import seed
from prefdata.models.files import identify
from prefdata.scorers.classifier.hf import RewardModel
from prefdata.scorers.classifier.prefixes import prefix_groups
from prefdata.scorers.protocol import ScoringItem

DATA = Path(sample_data.__file__).parent
WORDS = 150
"""Words of a long prompt and of a long answer: about 200 tokens of the sample tokenizer."""


def sampled(prompts: int, n: int) -> list[ScoringItem]:
    """Answers of the sample data's policy, n a prompt."""
    rows = [json.loads(line) for line in (DATA / "prompts.jsonl").read_text("utf-8").splitlines()][:prompts]
    engine = TransformersGenerator(identify(str(DATA / "policy"), "causal-lm"), dtype="float32")
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=96)
    requests = [
        Request(f"{i}/{k}", engine.render(row["messages"]), seed(0, i, k), sampling)
        for i, row in enumerate(rows)
        for k in range(n)
    ]
    texts = {answer.key: answer.text for answer in engine.generate(requests) if isinstance(answer, Completion)}
    return [
        ScoringItem(r.key, tuple(rows[int(r.key.split("/")[0])]["messages"]), texts[r.key], False) for r in requests
    ]


def long_prompts(prompts: int, n: int) -> list[ScoringItem]:
    """Prompts and answers of the sample data's words, equally long."""
    rows = [json.loads(line) for line in (DATA / "demonstrations.jsonl").read_text("utf-8").splitlines()]
    words = " ".join(row["messages"][-1]["content"] for row in rows).split()
    draw = random.Random(0)

    def some() -> str:
        at, count = draw.randrange(len(words) - 2 * WORDS), draw.randint(WORDS * 3 // 4, WORDS * 5 // 4)
        return " ".join(words[at : at + count])

    asked = [({"role": "user", "content": some()},) for _ in range(prompts)]
    return [ScoringItem(f"{i}/{k}", messages, some(), False) for i, messages in enumerate(asked) for k in range(n)]


def larger_model(folder: Path) -> Path:
    """A random reward model of 8 layers, wide enough that its matrix products count, with the sample tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=896, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=1024, num_labels=1, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(DATA / "reward_model").save_pretrained(folder)
    return folder


def by_pipeline(model: RewardModel, items: list[ScoringItem]) -> dict[str, float]:
    """The scores by transformers' own pipeline, 32 texts at a time."""
    texts = [model.texts.text(item.messages, item.response) for item in items]
    # The template writes the begin token: the pipeline's tokenizer must not add another.
    said = _pipeline(model)(texts, batch_size=32, function_to_apply="none", add_special_tokens=False)
    return {item.key: one["score"] for item, one in zip(items, said, strict=True)}


_PIPELINES: dict[int, object] = {}


def _pipeline(model: RewardModel) -> Callable:
    if id(model) not in _PIPELINES:
        net = AutoModelForSequenceClassification.from_pretrained(model.folder, dtype=torch.float32)
        _PIPELINES[id(model)] = make_pipeline(
            "text-classification", model=net, tokenizer=AutoTokenizer.from_pretrained(model.folder), device="cpu"
        )
    return _PIPELINES[id(model)]


@torch.inference_mode()
def by_sorted_batches(model: RewardModel, items: list[ScoringItem]) -> dict[str, float]:
    """The scores by batches of 32, sorted by length and padded, on the same network."""
    net, found = _pipeline(model).model, {}
    ids = model.texts.encode([model.texts.text(item.messages, item.response) for item in items])
    order = sorted(range(len(items)), key=lambda i: -len(ids[i]))
    for at in range(0, len(order), 32):
        part = order[at : at + 32]
        width = len(ids[part[0]])
        rows = torch.tensor([ids[i] + [0] * (width - len(ids[i])) for i in part])
        mask = torch.tensor([[1] * len(ids[i]) + [0] * (width - len(ids[i])) for i in part])
        logits = net(input_ids=rows, attention_mask=mask, use_cache=False).logits[:, 0].tolist()
        found |= {items[i].key: score for i, score in zip(part, logits, strict=True)}
    return found


def by_prefdata(model: RewardModel, items: list[ScoringItem]) -> dict[str, float]:
    return {scored.key: scored.score for scored in model.score(items)}


def matmul_rate(seconds: float = 1.0) -> float:
    """Floating-point operations a second of a matrix product of 1024 by 1024, float32."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    torch.mm(a, b)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        torch.mm(a, b)
        done += 1
    return done * 2 * 1024**3 / (time.perf_counter() - began)


def needed_flops(model: RewardModel, items: list[ScoringItem]) -> float:
    """What the scores cost when every prompt is computed once and nothing is padded."""
    config = model._net.config
    weights = sum(p.numel() for name, p in model._net.named_parameters() if "embed" not in name)
    shared, whole = prefix_groups(model.texts.prepare(items).rows)
    spans = [(0, len(row.ids)) for row in whole] + [(0, len(family.prefix)) for family in shared]
    spans += [(len(family.prefix), len(ids)) for family in shared for _, ids in family.branches]
    attended = sum(own * past + own * (own + 1) / 2 for past, own in spans)
    width = config.num_attention_heads * model._net.config.head_dim
    return 2.0 * weights * sum(own for _, own in spans) + 4.0 * config.num_hidden_layers * width * attended


def compare(name: str, folder: Path, items: list[ScoringItem], usual: Callable, rounds: int, rate: float) -> None:
    ways = {usual.__name__.removeprefix("by_").replace("_", " "): usual, "prefdata": by_prefdata}
    sides = {side: started(way, folder, items) for side, way in ways.items()}
    times: dict[str, list[float]] = {side: [] for side in sides}
    said: dict[str, dict[str, float]] = {}
    for number in range(rounds + 1):  # the first round warms up
        for side, asked in sides.items():
            asked.send("again")
            seconds, said[side], padding = asked.recv()
            if number:
                times[side].append(seconds)
    for asked in sides.values():
        asked.send(None)
    limit = needed_flops(opened(folder), items) / rate
    one, other = said.values()
    apart = max(abs(one[key] - other[key]) for key in one)
    ratios = [a / b for a, b in zip(*times.values(), strict=True)]
    print(f"\n{name}: {len(items)} texts; scores apart by {apart:.1e} at most; padding {padding:.1%}")
    print("\n| | texts/s, median | ratio |\n|---|--:|--:|")
    for side, spent in times.items():
        ratio = statistics.median(ratios) if side == "prefdata" else 1.0
        print(f"| {side} | {len(items) / statistics.median(spent):,.0f} | {ratio:.2f} |")
    print(f"| the limit | {len(items) / limit:,.0f} | |")


def compare_cpu(folder: Path, items: list[ScoringItem], rounds: int) -> None:
    torch.set_num_threads(1)
    once, whole = opened(folder), opened(folder, share_prompts=False)
    ways = {
        "pipeline": lambda: by_pipeline(once, items),
        "whole texts": lambda: by_prefdata(whole, items),
        "prefdata": lambda: by_prefdata(once, items),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):  # the first round warms up
        for name, way in ways.items():
            began = time.process_time()
            way()
            if number:
                times[name].append(time.process_time() - began)
    print(f"{len(items)} texts, one thread\n\n| | CPU s, median | pipeline's / this |\n|---|--:|--:|")
    for name, spent in times.items():
        ratios = [a / b for a, b in zip(times["pipeline"], spent, strict=True)]
        shown = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {statistics.median(spent):.2f} | {shown} |")


def started(way: Callable, folder: Path, items: list[ScoringItem]) -> Connection:
    """A process that computes the scores each time that it is asked."""
    ours, theirs = multiprocessing.Pipe()
    for name, value in WAITING.items():
        os.environ.pop(name, None)
        if way is by_prefdata:
            os.environ[name] = value
    multiprocessing.get_context("spawn").Process(
        target=answering, args=(theirs, way, folder, items), daemon=True
    ).start()
    return ours


def answering(asked: Connection, way: Callable, folder: Path, items: list[ScoringItem]) -> None:
    """Send the seconds, the scores and the share of padding, again and again."""
    model = opened(folder)
    while asked.recv():
        began = time.perf_counter()
        said = way(model, items)
        asked.send((time.perf_counter() - began, said, model.padding))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DATA / "reward_model"), help="a reward model's folder")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--long-prompts", type=int, default=4)
    parser.add_argument("-n", type=int, default=16, help="answers a prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu", action="store_true", help="CPU seconds on one thread, of the short prompts")
    said = parser.parse_args()
    if said.cpu:
        compare_cpu(Path(said.model), sampled(said.prompts, said.n), said.rounds)
        return
    rate = matmul_rate()
    print(f"{torch.get_num_threads()} threads, matrix product {rate / 1e9:.0f} GFLOP/s")
    if said.prompts:
        compare("answers", Path(said.model), sampled(said.prompts, said.n), by_pipeline, said.rounds, rate)
    if said.long_prompts:
        with tempfile.TemporaryDirectory() as folder:
            items = long_prompts(said.long_prompts, said.n)
            compare("long prompts", larger_model(Path(folder)), items, by_sorted_batches, said.rounds, rate)


def opened(folder: Path, **settings: bool) -> RewardModel:
    model = RewardModel(identify(str(folder), "reward-model"), device="cpu", dtype="float32", **settings)
    model.folder = folder
    return model


if __name__ == "__main__":
    main()
