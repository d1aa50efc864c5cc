"""Rebuild the sample world: the data files, the tokenizer and the two models, all from one seed.

    python -m prefdata.sample_data.build [FOLDER] [--data-only]

FOLDER is where the package lies unless given. The data files come out byte for byte the same everywhere; the models
the same on one kind of machine with one version of torch (training runs on the CPU, with `THREADS` threads).
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .corpus import SEED, write_corpus

THREADS = 1
"""Sums over more threads come out in another order, and the weights with them."""
VOCABULARY = 896
SPECIAL_TOKENS = ("<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
POLICY: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
}
POLICY_TRAINING: dict[str, Any] = {
    "from_scratch": True,
    "epochs": 4,
    "lr": 2e-3,
    "batch_size": 16,
    "lr_scheduler": "cosine",
    "warmup": 0.03,
    "weight_decay": 0.05,
}
REWARD_TRAINING: dict[str, Any] = {"epochs": 1, "lr": 7e-4, "batch_size": 16, "warmup": 0.03, "lr_scheduler": "cosine"}


def build(folder: Path, *, data_only: bool = False) -> None:
    """Write the data files into `folder`, and unless `data_only` the models trained on them."""
    write_corpus(folder)
    if data_only:
        return
    import torch

    from prefdata.train.specs import RmSpec, SftSpec
    from prefdata.train.train import train_rm, train_sft

    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as scratch:
        blank, policy, reward = (Path(scratch) / name for name in ("blank", "policy", "reward_model"))
        write_blank_policy(blank, folder / "demonstrations.jsonl")
        sft = SftSpec(model=str(blank), seed=SEED, device="cpu", **POLICY_TRAINING)
        train_sft(folder / "demonstrations.jsonl", sft, policy, progress=show)
        rm = RmSpec(model=str(policy), seed=SEED, device="cpu", **REWARD_TRAINING)
        train_rm(folder / "preferences.jsonl", rm, reward, progress=show)
        for model in (policy, reward):
            ship(model, folder / model.name)


def write_blank_policy(folder: Path, demonstrations: Path) -> None:
    """Write a model folder without weights: the policy's configuration and its tokenizer."""
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    fast: Any = PreTrainedTokenizerFast
    tokenizer = fast(
        tokenizer_object=train_tokenizer(_texts(demonstrations)),
        pad_token="<|pad|>",
        bos_token="<|begin|>",
        eos_token="<|end|>",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    config = LlamaConfig(vocab_size=len(tokenizer), architectures=["LlamaForCausalLM"], **ids, **POLICY)
    config.save_pretrained(folder)


def train_tokenizer(texts: Iterator[str]) -> Any:
    """A byte-level BPE of `VOCABULARY` tokens, in which any text has its ids and comes back from them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def ship(trained: Path, folder: Path) -> None:
    """Copy the model's own files, and none of the trainer's records."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in sorted(trained.iterdir()):
        is_record = file.name.startswith(("_", "metrics")) or file.is_dir()
        if not is_record:
            shutil.copyfile(file, folder / file.name)


def show(done: int, total: int, **figures: float) -> None:
    """Print a line now and then."""
    if done % 100 == 0 or done == total:
        print(done, "of", total, *(f"{name} {value:.3g}" for name, value in figures.items()), flush=True)


def _texts(demonstrations: Path) -> Iterator[str]:
    with demonstrations.open(encoding="utf-8") as lines:
        for line in lines:
            for message in json.loads(line)["messages"]:
                yield message["content"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m prefdata.sample_data.build", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent)
    parser.add_argument("--data-only", action="store_true", help="write the data files and train nothing")
    said = parser.parse_args()
    build(said.folder, data_only=said.data_only)


if __name__ == "__main__":
    main()
