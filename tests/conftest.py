"""Models small enough to build in a test: real architectures, random weights, a tokenizer with the usual traps."""

from __future__ import annotations

import os
from pathlib import Path

# Small models lose time on many threads, and parallel test runs share the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CACHE_ROOT", str(Path.home() / ".cache" / "vllm"))  # compile once, also where HOME changes

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs, so that a test sees the same machine everywhere; `-m gpu` keeps them.

    Refuse a pytest with which pytest-xdist 3.8 ignores groups: vLLM's engines would run side by side.
    """
    if config.getoption("numprocesses", None) and not hasattr(pytest.Item, "_nodeid"):
        raise pytest.UsageError(f"pytest-xdist ignores groups with pytest {pytest.__version__}; install pytest<9.2")
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put all tests of vLLM on one worker, where its engines stay, and slow tests first: none is left for the end."""
    for item in items:
        if item.get_closest_marker("vllm"):
            item.add_marker(pytest.mark.xdist_group("vllm"))
            item.add_marker(pytest.mark.timeout(3600))  # a start may take ten minutes on a busy machine
            item.fixturenames.insert(0, "kept_engines")
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


SAMPLE_POLICY = Path(__file__).parents[1] / "sample_data/policy"

SPECIALS = ("<pad>", "<bos>", "<eos>", "<eot>")
"""The special tokens of the tiny tokenizer, whose ids are 0, 1, 2 and 3; the 256 bytes follow."""

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% if tools %}[tools] {{ tools | tojson }}<eot>{% endif %}"
    "{% for m in messages %}"
    "{% if m['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + m['role']) }}"
    "{% endif %}"
    "[{{ m['role'] }}] {{ m['content'] }}<eot>"
    "{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
"""Writes its own BOS, as Llama 3's does: tokenising its text with special tokens would give two."""


def save_tokenizer(folder: Path, *, chat_template: str | None = CHAT_TEMPLATE, **settings: Any) -> None:
    """A byte-level tokenizer without merges that puts a BOS in front of every text, saved in `folder`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIALS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    names: dict[str, Any] = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", **settings}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.chat_template = chat_template
    fast.save_pretrained(folder)


def tiny_config(**overrides: Any) -> Any:
    """Two layers, two heads of 32 (what vLLM's CPU build asks for), 260 tokens, 128 positions."""
    from transformers import LlamaConfig

    settings: dict[str, Any] = {
        "vocab_size": 260,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 128,
        "initializer_range": 0.1,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        **overrides,
    }
    return LlamaConfig(**settings)


@pytest.fixture(scope="session")
def make_policy() -> Callable[..., Path]:
    """`make_policy(folder, seed=0, tokenizer={…}, **config)`: write a tiny causal LM and return its folder."""

    def make(folder: Path, seed: int = 0, tokenizer: dict[str, Any] | None = None, **config: Any) -> Path:
        import torch
        from transformers import GenerationConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        model = LlamaForCausalLM(tiny_config(**config))
        with torch.no_grad():
            model.lm_head.weight.mul_(2.0)
            model.lm_head.weight[2:4].mul_(2.0)  # so that answers end, after 40 tokens on average
        model.generation_config = GenerationConfig(eos_token_id=[2, 3], pad_token_id=0, bos_token_id=1)
        model.save_pretrained(folder)
        save_tokenizer(folder, **(tokenizer or {}))
        return folder

    return make


@pytest.fixture(scope="session")
def make_reward_model() -> Callable[..., Path]:
    """`make_reward_model(folder, seed=0, labels=1, tokenizer={…}, **config)`: write a tiny reward model."""

    def make(
        folder: Path, seed: int = 0, labels: int = 1, tokenizer: dict[str, Any] | None = None, **config: Any
    ) -> Path:
        import torch
        from transformers import LlamaForSequenceClassification

        torch.manual_seed(seed)
        model = LlamaForSequenceClassification(tiny_config(num_labels=labels, **config))
        with torch.no_grad():
            model.score.weight.mul_(5.0)
        model.save_pretrained(folder)
        save_tokenizer(folder, **(tokenizer or {}))
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory, make_policy: Callable[..., Path]) -> Path:
    """A causal LM with a chat template, a BOS and two end tokens (`<eos>` 2, `<eot>` 3); context 128.

    Its generation defaults would shorten and sharpen every response: no engine may use them.
    """
    folder = make_policy(tmp_path_factory.mktemp("models") / "tiny-policy")
    defaults = folder / "generation_config.json"
    own = {"max_new_tokens": 3, "temperature": 0.1, "top_k": 1, "do_sample": True, "repetition_penalty": 5.0}
    defaults.write_text(json.dumps({**json.loads(defaults.read_text()), **own}))
    return folder


@pytest.fixture(scope="session")
def tiny_reward_model(tmp_path_factory: pytest.TempPathFactory, make_reward_model: Callable[..., Path]) -> Path:
    """A sequence-classification model with one label and the policy's tokenizer; context 128."""
    return make_reward_model(tmp_path_factory.mktemp("models") / "tiny-reward")


@pytest.fixture(scope="session")
def fitting_reward_model(tmp_path_factory: pytest.TempPathFactory, make_reward_model: Callable[..., Path]) -> Path:
    """The tiny reward model with a context of 256, which the built-in texts of `check reward-model` fit."""
    return make_reward_model(tmp_path_factory.mktemp("models") / "fitting", max_position_embeddings=256)


@pytest.fixture(scope="session")
def kept_engines() -> Iterator[None]:
    """Let the tests of vLLM share its engines, one for each model; every test marked `vllm` has this fixture."""
    from kept_engines import KeptEngines

    from prefdata.engines.vllm import generator
    from prefdata.scorers.classifier import vllm

    kept = KeptEngines()
    with pytest.MonkeyPatch.context() as patch:
        for module in (generator, vllm):
            patch.setattr(module, "start", kept.start)
        yield
    kept.close()


@pytest.fixture(scope="session")
def sample_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a `vllm serve` with the bundled policy, by two names; its key is `sk-of-the-tests`."""
    from servers import vllm_serve

    names = ("policy", "sample_data/policy")
    with vllm_serve(SAMPLE_POLICY, tmp_path_factory.mktemp("serve") / "log", names, key="sk-of-the-tests") as url:
        yield url


@pytest.fixture(scope="session")
def tiny_server(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a `vllm serve` with the tiny policy, which it calls `policy`."""
    from servers import vllm_serve

    with vllm_serve(tiny_policy, tmp_path_factory.mktemp("serve") / "log") as url:
        yield url


@pytest.fixture
def cores() -> Iterator[Callable[[int], None]]:
    """`cores(4)`: let torch use so many threads, for the time of a test."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """`edit_json(path, key=value, …)`: change keys of a JSON file; a value of None removes the key."""

    def edit(path: Path, **changes: Any) -> None:
        values = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return edit


@pytest.fixture
def prefdata(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """`prefdata("sample", run, …)`: the command line without the start of a process; exit code, stdout, stderr."""
    import sys
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="console_scripts", name="prefdata")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prefdata", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            entry.load()()
        out = capsys.readouterr()
        return int(ended.value.code or 0), out.out, out.err

    return call


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB of its own, to fill or to make read-only; skipped where nothing may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)  # a traceback may hold a file of it open


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Rows as a JSONL file (films.jsonl unless named otherwise); gives its path."""

    def write(*rows: Any, name: str = "films.jsonl") -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write
