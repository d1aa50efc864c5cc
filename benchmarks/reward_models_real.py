"""Reward models on preferences by people: one of `prefdata train rm` beside a bag of words and the longer answer.

python benchmarks/reward_models_real.py DATA

DATA holds `pandalm/testset_v1.parquet` (WeOpenML/PandaLM; the majority of three annotators, ties left out) and
`hh_harmless_test/test.parquet` (anthropics/hh-rlhf). Pairs with an empty answer, or twice the same, are left out: the
trainer refuses them. Five folds by hash of the prompt: each pair is judged once, by
models that saw no pair of its prompt. All read the answer alone, since what both answers share decides no pair. An
equal score counts one half; intervals are the 95% bootstrap over prompts.

- `bag of words`: linear Bradley-Terry on the difference of the counts of words, with an L2 penalty.
- `prefdata`: the mean of five models of one Llama layer over words, from random weights. Their settings were chosen on
  folds of the same pairs: this is no independent test.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from prefdata.stats.bootstrap import bootstrap_intervals

FOLDS = 5
PENALTY = 100.0
"""Bag of words: the best of 10, 100, 300 and 1000 on both sets together; it is given that advantage."""
RARE = 30
"""Answers of the training folds that a word must be in to be a token of its own."""
WIDTH = 64
SETTINGS = {"epochs": 2, "lr": 3e-4, "max-grad-norm": 0, "save-every": 0, "device": "cpu"}
SEEDS = 5
"""Models whose scores are averaged, as `prefdata rank --combine mean(a, b, …)` does; they differ in their seed."""
ASKED = "Answer:"
REPEATED = {"pandalm": 32, "hh_harmless_test": 1}
"""How often that stands before an answer: the more of it, the more of the length the mean over words tells."""
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")


class Pair(NamedTuple):
    """A prompt with the better and the worse answer."""

    prompt: str
    chosen: str
    rejected: str


Margins = NDArray[np.float64]
"""A score's margin for each pair that is judged: above zero is right."""


def pandalm(data: Path) -> list[Pair]:
    """The pairs on which two annotators of three agree that one answer is better."""
    pairs = []
    for row in pl.read_parquet(data / "pandalm/testset_v1.parquet").iter_rows(named=True):
        (verdict, votes), *_ = Counter(int(row[f"annotator{i}"]) for i in (1, 2, 3)).most_common()
        if votes > 1 and verdict in (1, 2):
            answers = [row[f"response{verdict}"], row[f"response{3 - verdict}"]]
            pairs.append(Pair(f"{row['instruction']}\n{row['input'] or ''}", *answers))
    return pairs


def harmless(data: Path) -> list[Pair]:
    """Transcripts, parted after the turns that both have in common."""
    end, pairs = "\n\nAssistant:", []
    for row in pl.read_parquet(data / "hh_harmless_test/test.parquet").iter_rows(named=True):
        a, b = row["chosen"].split(end), row["rejected"].split(end)
        shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        shared = min(shared, len(a) - 1, len(b) - 1)
        pairs.append(Pair(end.join(a[:shared]), end.join(a[shared:]), end.join(b[shared:])))
    return pairs


def fold(prompt: str) -> int:
    """The fold that a prompt is held out in."""
    return int(hashlib.sha256(prompt.encode()).hexdigest()[:8], 16) % FOLDS


def words(answers: Iterable[str], least: int) -> list[str]:
    """The words that are in at least that many of the answers, the most frequent first."""
    counts = Counter(word for answer in answers for word in set(answer.split()))
    return [word for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if count >= least]


def longer(train: Sequence[Pair], held: Sequence[Pair]) -> Margins:
    """The difference of lengths in characters."""
    return np.array([float(len(pair.chosen) - len(pair.rejected)) for pair in held])


def bag_of_words(train: Sequence[Pair], held: Sequence[Pair]) -> Margins:
    """The margins of a linear Bradley-Terry model on counts of words."""
    place = {word: i for i, word in enumerate(words((a for pair in train for a in pair[1:]), 3))}

    def differences(pairs: Sequence[Pair]) -> torch.Tensor:
        rows = torch.zeros(len(pairs), len(place), dtype=torch.float64)
        for row, pair in zip(rows, pairs, strict=True):
            for sign, answer in ((1, pair.chosen), (-1, pair.rejected)):
                for word in answer.split():
                    if word in place:
                        row[place[word]] += sign
        return rows

    x, weights = differences(train), torch.zeros(len(place), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.softplus(-x @ weights).sum() + PENALTY / 2 * weights.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return (differences(held) @ weights).detach().numpy()


def reward_model(asked: str, train: Sequence[Pair], held: Sequence[Pair]) -> Margins:
    """The mean margins of models that `prefdata train rm` makes, scored by transformers one text at a time."""
    with tempfile.TemporaryDirectory() as folder:
        data, start = Path(folder) / "pairs.jsonl", Path(folder) / "start"
        rows = [{"prompt": asked, "chosen": f" {p.chosen}", "rejected": f" {p.rejected}"} for p in train]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        new_model(start, (answer for pair in train for answer in pair[1:]))
        every = [_margins(asked, data, start, Path(folder) / str(seed), seed, held) for seed in range(SEEDS)]
        return np.mean(every, axis=0)


def _margins(asked: str, data: Path, start: Path, out: Path, seed: int, held: Sequence[Pair]) -> Margins:
    command = ["train", "rm", str(data), "--model", str(start), "--out", str(out), "--from-scratch", f"--seed={seed}"]
    command += [f"--{name}={value}" for name, value in SETTINGS.items()]
    subprocess.run([sys.executable, "-m", "prefdata.cli", *command], check=True, capture_output=True)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(out), AutoTokenizer.from_pretrained(out)

    @torch.no_grad()
    def score(answer: str) -> float:
        return float(model(**tokenizer(f"{asked} {answer}", return_tensors="pt")).logits)

    return np.array([score(pair.chosen) - score(pair.rejected) for pair in held])


def new_model(folder: Path, answers: Iterable[str]) -> None:
    """The config of one Llama layer and a tokenizer of the answers' words: what `--from-scratch` starts from."""
    vocabulary = dict.fromkeys([*SPECIAL, *words(answers, RARE)])
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        "<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    names: dict[str, Any] = {f"{token.strip('<>')}_token": token for token in SPECIAL}
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    LlamaConfig(
        architectures=["LlamaForCausalLM"], vocab_size=len(vocabulary), hidden_size=WIDTH, intermediate_size=WIDTH,
        num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=2048, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ).save_pretrained(folder)  # fmt: skip


def held_out(
    pairs: Sequence[Pair], judge: Callable[[Sequence[Pair], Sequence[Pair]], Margins]
) -> tuple[Margins, float]:
    """Whether each pair is judged right (1, 0.5 or 0), by models that saw no pair of its prompt; and seconds a fold."""
    folds, right, seconds = np.array([fold(pair.prompt) for pair in pairs]), np.empty(len(pairs)), []
    for number in range(FOLDS):
        train = [pair for pair, f in zip(pairs, folds, strict=True) if f != number]
        held = [pair for pair, f in zip(pairs, folds, strict=True) if f == number]
        began = time.perf_counter()
        right[folds == number] = (np.sign(judge(train, held)) + 1) / 2
        seconds.append(time.perf_counter() - began)
    return right, statistics.mean(seconds)


def with_interval(values: Margins, pairs: Sequence[Pair]) -> str:
    """The mean over pairs with its interval over prompts."""
    prompts = np.unique([pair.prompt for pair in pairs], return_inverse=True)[1]
    sums, sizes = np.bincount(prompts, values), np.bincount(prompts).astype(np.float64)
    low, high = bootstrap_intervals(sums.astype(np.float64)[:, None], sizes)
    return f"{values.mean():.3f} [{low[0]:.3f}, {high[0]:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description="Reward models on preferences by people.")
    parser.add_argument("data", type=Path, help="the folder with pandalm and hh_harmless_test")
    data = parser.parse_args().data
    torch.set_num_threads(1)
    print("| pairs | judge | accuracy | more than bag of words | s a fold |")
    print("|---|---|--:|--:|--:|")
    for name, every in {"pandalm": pandalm(data), "hh_harmless_test": harmless(data)}.items():
        pairs = [p for p in every if p.chosen.strip() and p.rejected.strip() and p.chosen != p.rejected]
        words_right = None
        ours = partial(reward_model, " ".join([ASKED] * REPEATED[name]))
        for label, judge in {"bag of words": bag_of_words, "longer": longer, "prefdata": ours}.items():
            right, seconds = held_out(pairs, judge)
            words_right = right if words_right is None else words_right
            told = f"{with_interval(right, pairs)} | {with_interval(right - words_right, pairs)}"
            print(
                f"| {name} ({len(pairs):,} of {len(every):,}) | {label} | {told} | {seconds:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
