"""Training steps beside TRL at its best settings, and beside a loop written by hand: seconds per step and peak memory.

    python benchmarks/training.py dpo|sft|rm [--rounds 3] [--steps 12] [--threads 2]

A Llama of 14.5 million parameters with 32,000 words, batches of 4, prompts of about 192 tokens and responses of about
64; `rm` has 8 responses to each prompt (prefdata compares all pairs of them in one forward pass, TRL gets the pairs).
Every side trains in a process of its own, alternately; the first two steps are left out. CPU seconds are less moved by
what else runs than wall time is.

TRL runs in float32 without gradient checkpointing and with precomputed reference log-probabilities; its defaults on a
CPU (bfloat16, checkpointing, a second forward pass) take four times as long. The loop by hand has the prompt once, the
head on responses alone and cached reference log-probabilities, by a 4-D mask, and nothing else: it logs nothing and
cannot be resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

WORDS, BATCH, PROMPT, RESPONSE, GROUP = 32000, 4, 192, 64, 8
SKIPPED = 2
"""First steps that are not counted: they allocate."""


def make_model(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def make_rows(count: int, responses: int) -> list[dict[str, Any]]:
    """Prompts with responses of log-normal lengths, about as long as those of dialogue data vary."""
    draw = np.random.default_rng(0)

    def text(mean: int, spread: float) -> str:
        length = int(np.clip(draw.lognormal(np.log(mean), spread), 4, 3 * mean))
        return " ".join(f"w{i}" for i in draw.integers(2, WORDS, length))

    return [
        {"prompt": text(PROMPT, 0.2) + " ", "responses": [text(RESPONSE, 0.4) for _ in range(responses)]}
        for _ in range(count)
    ]


class Clock:
    """Wall and CPU seconds between calls."""

    def __init__(self) -> None:
        self.ticks: list[tuple[float, float]] = []

    def __call__(self) -> None:
        self.ticks.append((time.perf_counter(), time.process_time()))

    def report(self) -> dict[str, Any]:
        steps = np.diff(np.array(self.ticks), axis=0)[SKIPPED:]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return {"wall": np.median(steps[:, 0]), "cpu": np.median(steps[:, 1]), "GiB": peak}


def ours(what: str, folder: Path, steps: int) -> dict[str, Any]:
    from prefdata.train.specs import DpoSpec, RmSpec, SftSpec
    from prefdata.train.train import train_dpo, train_rm, train_sft

    clock = Clock()

    def progress(done: int, total: int, **figures: float) -> None:
        if "tokens" in figures:
            clock()

    shared = {"model": str(folder / "model"), "batch_size": BATCH, "save_every": 0, "device": "cpu"}
    train, file, spec = {
        "dpo": (train_dpo, "pairs", DpoSpec),
        "rm": (train_rm, "groups", RmSpec),
        "sft": (train_sft, "sft", SftSpec),
    }[what]
    made = spec(**shared, **({"loss": "k-wise"} if what == "rm" else {}))
    train(folder / f"{file}.jsonl", made, folder / "ours", replace=True, progress=progress)
    return clock.report()


def trl(what: str, folder: Path, steps: int) -> dict[str, Any]:
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    clock = Clock()

    class Ticks(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not clock.ticks:
                clock()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock()

    kind, config, file, more = {
        "dpo": (DPOTrainer, DPOConfig, "pairs", {"precompute_ref_log_probs": True, "max_length": 1024}),
        "sft": (SFTTrainer, SFTConfig, "sft", {"max_length": 1024}),
        "rm": (RewardTrainer, RewardConfig, "expanded", {"max_length": 1024}),
    }[what]
    model: Any = str(folder / "model")
    if what == "rm":
        model = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    pairs = BATCH * GROUP * (GROUP - 1) // 2
    arguments = config(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=16 if what == "rm" else BATCH,  # larger batches of pairs are no faster
        gradient_accumulation_steps=pairs // 16 if what == "rm" else 1,
        max_steps=steps,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=10**9,
        **more,
    )
    trainer = kind(
        model=model,
        args=arguments,
        train_dataset=load_dataset("json", data_files=str(folder / f"{file}.jsonl"), split="train"),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        callbacks=[Ticks()],
    )
    trainer.train()
    return clock.report()


def by_hand(what: str, folder: Path, steps: int) -> dict[str, Any]:
    """DPO with the prompt once, as short as it can be written."""
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    data = [[tokenizer(row[name])["input_ids"] for name in ("prompt", "chosen", "rejected")] for row in rows]

    def batch(pairs: list[Any]) -> Any:
        width = max(sum(map(len, pair)) + 2 for pair in pairs)
        ids, positions = (
            torch.zeros(len(pairs), width, dtype=torch.long),
            torch.zeros(len(pairs), width, dtype=torch.long),
        )
        mask = torch.eye(width, dtype=torch.bool).repeat(len(pairs), 1, 1)
        places, targets, owner = [], [], []
        for e, (prompt, *responses) in enumerate(pairs):
            at = start = len(prompt)
            ids[e, :start], positions[e, :start] = torch.tensor(prompt), torch.arange(start)
            mask[e, :start, :start] = torch.ones(start, start, dtype=torch.bool).tril()
            for k, response in enumerate(responses):
                end = at + len(response) + 1
                ids[e, at:end] = torch.tensor([*response, 1])
                positions[e, at:end] = torch.arange(start, start + end - at)
                mask[e, at:end, :start] = True
                mask[e, at:end, at:end] = torch.ones(end - at, end - at, dtype=torch.bool).tril()
                places += [e * width + start - 1, *range(e * width + at, e * width + end - 1)]
                targets += [*response, 1]
                owner += [2 * e + k] * (end - at)
                at = end
        return ids, positions, mask[:, None], *map(torch.tensor, (places, targets, owner))

    def logps(ids: Any, positions: Any, mask: Any, places: Any, targets: Any, owner: Any) -> Any:
        hidden = model.model(
            input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False
        ).last_hidden_state
        tokens = -F.cross_entropy(model.lm_head(hidden.flatten(0, 1)[places]), targets, reduction="none")
        return torch.zeros(2 * len(ids)).index_add(0, owner, tokens).view(-1, 2)

    batches = [batch(data[at : at + BATCH]) for at in range(0, steps * BATCH, BATCH)]
    with torch.no_grad():
        reference = [logps(*one) for one in batches]
    optimizer, clock = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True), Clock()
    clock()
    for one, theirs in zip(batches, reference, strict=True):
        chosen, rejected = (logps(*one) - theirs).unbind(1)
        (-F.logsigmoid(0.1 * (chosen - rejected)).mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock()
    return clock.report()


def write_data(folder: Path, steps: int) -> None:
    rows = make_rows(steps * BATCH, GROUP)
    pairs = [{"prompt": r["prompt"], "chosen": r["responses"][0], "rejected": r["responses"][1]} for r in rows]
    expanded = [
        {"chosen": r["prompt"] + r["responses"][i], "rejected": r["prompt"] + r["responses"][j]}
        for r in rows
        for i, j in combinations(range(GROUP), 2)
    ]
    files = {
        "pairs": pairs,
        "sft": [{"prompt": r["prompt"], "completion": r["responses"][0]} for r in rows],
        "groups": [
            {"prompt": r["prompt"], "completions": r["responses"], "scores": list(range(GROUP, 0, -1))} for r in rows
        ],
        "expanded": expanded,
    }
    for name, content in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["dpo", "sft", "rm"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=["prefdata", "trl", "by hand"], help="one side only, in this process")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.side:
        side = {"prefdata": ours, "trl": trl, "by hand": by_hand}[given.side]
        print(json.dumps(side(given.what, given.folder, given.steps)))
        return
    sides = ["prefdata", "trl", *(["by hand"] if given.what == "dpo" else [])]
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        write_data(folder, given.steps)
        command = [sys.executable, __file__, given.what, "--steps", str(given.steps), "--folder", name, "--side"]
        for _ in range(given.rounds):
            for side in sides:
                env = {**os.environ, "OMP_NUM_THREADS": str(given.threads), "HF_HUB_OFFLINE": "1"}
                done = subprocess.run([*command, side], stdout=subprocess.PIPE, text=True, check=True, env=env)
                found[side].append(json.loads(done.stdout.splitlines()[-1]))
                print(side, found[side][-1], f"load {os.getloadavg()[0]:.1f}", flush=True)
    middle = {side: {k: statistics.median(f[k] for f in runs) for k in runs[0]} for side, runs in found.items()}
    for side, figures in middle.items():
        ratios = {k: middle["prefdata"][k] / figures[k] for k in figures}
        print(f"{side:9s}", *(f"{k} {figures[k]:.3f} (prefdata's is {ratios[k]:.2f} of it)" for k in figures), sep="  ")


if __name__ == "__main__":
    main()
