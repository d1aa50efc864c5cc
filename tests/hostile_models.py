"""Hostile model folders, drawn by a seed: configs, indices, weights and tokenizers as nobody should write them."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

from hostile import DEEP, ODD, Case, mutated, raw

_CONFIGS = ("config.json", "config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")
_CONTENTS = (
    b"", b"{}", b"[]", b"null", b"\xff\xfe{}", b"\0" * 100, DEEP.encode(), b'{"a": ' * 5000, b"{" + b" " * 3_000_000,
    b'{"architectures": ["LlamaForCausalLM"]}', b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}',
    b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "auto_map": {"AutoConfig": "x.Y"}}',
)  # fmt: skip
_KEYS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("hidden_size", (0, -1, 63, 1 << 20, "64", None, 64.0, True)),
    ("num_hidden_layers", (0, -1, 1, 3, 1 << 40, "2", None, [2])),
    ("num_attention_heads", (0, 3, -2, 1 << 31)),
    ("num_key_value_heads", (0, 3, -2, None)),
    ("vocab_size", (0, 1, 200, 1 << 31, "260", None)),
    ("max_position_embeddings", (0, -1, 1, 16, 1 << 62, "128", None, 1.5, True)),
    ("rms_norm_eps", (float("nan"), 0, -1, "x", 1e400)),
    ("rope_theta", (0, -1, "x", None)), ("rope_parameters", ({}, None, {"rope_type": "x"}, {"rope_type": "yarn"}, [])),
    ("hidden_act", ("x", None, 3, "relu")), ("dtype", ("float32", "x", None, 3, "int8", "float64", "float16")),
    ("torch_dtype", ("x", "bfloat16")),
    ("quantization_config", ({}, {"quant_method": "x"}, {"quant_method": "awq"}, 3)),
    ("model_type", ("x", None, 3, "t5", "mamba", "llama ", "__class__")), ("tie_word_embeddings", (True, "x", None)),
    ("architectures", (None, [], [None], ["x"], "LlamaForCausalLM", [3], {"a": 1}, ["LlamaForCausalLM", "x"])),
    ("eos_token_id", (None, [], [None], "x", -1, 1 << 40, [2, "3"], 1.5)), ("pad_token_id", (-1, "x", 1 << 40, [0])),
    ("id2label", ({}, {"x": "y"}, {"0": None}, [], {"1": "b", "0": "a"})), ("num_labels", (0, -1, "x", None, 1 << 30)),
    ("text_config", ({}, None, [], "x")), ("auto_map", ({"AutoModelForCausalLM": "evil--x.Y"},)),
    ("attn_implementation", ("x", "flash_attention_2")), ("_attn_implementation", ("x", "flex_attention")),
    ("is_encoder_decoder", (True, "x")), ("use_cache", (False, "x")), ("prefdata", ([], "x", {"plain_end": 3})),
    ("transformers_version", ("x", 9, None)), ("name_or_path", ("/etc/passwd",)),
    ("tokenizer_class", ("x", None, "T5Tokenizer")),
    ("problem_type", ("x",)), ("layer_types", (["x"], [], ["full_attention"] * 9)),
)  # fmt: skip
_TOKENIZER_KEYS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("tokenizer_class", ("x", None, 3, "LlamaTokenizer", "BertTokenizer", "PreTrainedTokenizerFast")),
    ("eos_token", (None, "<gone>", 3, "", {"content": "<eos>"}, ["x"])), ("bos_token", (None, "<gone>", 3, {})),
    ("pad_token", (None, "<gone>", "<eos>", 3)), ("model_max_length", (0, -1, 1e30, "x", None)),
    ("added_tokens_decoder", ({}, {"x": 1}, {"-1": {"content": "z"}}, {"999999": {"content": "zz"}}, [])),
    ("chat_template", (None, 3, {}, [], "{% for", "", [{"name": "default", "template": "x"}], [{"name": 3}])),
    ("auto_map", ({"AutoTokenizer": ["evil.X", None]},)), ("extra_special_tokens", (3, {"x": None}, ["a"])),
    ("padding_side", ("x", None)), ("clean_up_tokenization_spaces", ("x",)),
)  # fmt: skip
_TARGETS = (
    "one.safetensors",
    "one.safetensors",
    "../outside.safetensors",
    "/etc/passwd",
    "model.safetensors",
    ".",
    "",
    "\0",
    "gone.safetensors",
    "x" * 5000,
    "sub",
)


def model_folder(rng: random.Random, run: Path, folder: Path) -> Case:
    """A command on a model folder of which some files are not what they should be."""
    reward = rng.random() < 0.3
    model = folder / ("reward" if reward else "policy")
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        rng.choice((_config, _config, _settings, _settings, _tokenizer, _weights, _weights, _index, _entry, _adapter))(
            rng, model
        )
    data = folder / "sft.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n' * 2)
    if reward:
        uses: tuple[list[Any], ...] = (
            ["rank", run, "--reward-model", model, "--name", "rm"],
            ["rank", run, "--pairwise", model, "--name", "p"],
            ["check", "reward-model", model, "--engine", "transformers"],
        )
    else:
        uses = (
            ["sample", run, "--model", model, "-n", 1, "--max-tokens", 2, "--name", "m"],
            ["sample", run, "--model", model, "--name", "m", "--dry-run"],
            ["rank", run, "--mean-logprob", model, "--name", "l"],
            ["train", "sft", data, "--model", model, "--out", folder / "out", "--max-steps", 1],
        )
    return Case("model", list(rng.choice(uses)))


def _write(path: Path, content: bytes) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _config(rng: random.Random, model: Path) -> None:
    """A config that is broken, empty, huge, or of other values."""
    path = model / rng.choice(_CONFIGS)
    content = (
        raw(mutated(_read(path), rng, rng.choice([1, 1, 3])), rng) if rng.random() < 0.6 else rng.choice(_CONTENTS)
    )
    _write(path, content)


def _settings(rng: random.Random, model: Path) -> None:
    """A setting of a value that it does not take."""
    name, keys = rng.choice(
        (("config.json", _KEYS), ("config.json", _KEYS), ("tokenizer_config.json", _TOKENIZER_KEYS))
    )
    held = _read(model / name)
    held = held if isinstance(held, dict) else {}
    key, values = rng.choice(keys)
    changed = {**held, key: rng.choice((*values, rng.choice(ODD)))}
    _write(model / name, json.dumps(changed).encode("utf-8", "surrogatepass"))
    if name == "config.json" and rng.random() < 0.2:
        _write(model / "generation_config.json", json.dumps({key: rng.choice(ODD)}).encode("utf-8", "surrogatepass"))


def _tokenizer(rng: random.Random, model: Path) -> None:
    """A tokenizer that is cut, has no vocabulary, or other parts."""
    path = model / "tokenizer.json"
    held = _read(path)
    if not isinstance(held, dict) or not isinstance(held.get("model"), dict):
        return
    how = rng.choice(("vocab", "vocab", "ids", "part", "cut", "gone", "template"))
    if how == "vocab":
        held["model"]["vocab"] = rng.choice(({}, None, [], {"a": -1}, {"a": 1 << 40}, {"a": 0, "b": 0}, {"<eos>": 2}))
    elif how == "ids":
        held["model"]["vocab"] = {token: place + 300 for place, token in enumerate(held["model"].get("vocab") or ())}
    elif how == "part":
        key = rng.choice(sorted(held))
        held[key] = mutated(held[key], rng, 2)
    elif how == "template":
        _write(
            model / "chat_template.jinja",
            rng.choice((b"{% for", b"\xff", b"", b"{{ messages[9] }}", b"\0", b"{{ 1 / 0 }}")),
        )
    content = json.dumps(held).encode("utf-8", "surrogatepass")
    if how == "gone":
        path.unlink(missing_ok=True)
    else:
        _write(path, content[: rng.randrange(len(content))] if how == "cut" else content)


def _weights(rng: random.Random, model: Path) -> None:
    """Weights that are cut, whose header lies, or whose tensors are others."""
    path = model / "model.safetensors"
    if not path.is_file():
        return
    content = path.read_bytes()
    length, header = _header(path)
    body = content[8 + length :]
    how = rng.choice(("cut", "length", "empty", "more", *(("nan", "json", "tensor", "tensor") if header else ())))
    if how == "cut":
        _write(path, content[: rng.choice([0, 4, 8, 20, 8 + length, len(content) - 1])])
    elif how == "length":
        _write(path, rng.choice([0, 1, length - 1, 1 << 40, (1 << 64) - 1]).to_bytes(8, "little") + content[8:])
    elif how == "empty":
        _write(path, rng.choice([b"", b"\0" * 8, b"\2\0\0\0\0\0\0\0{}", b"\2\0\0\0\0\0\0\0[]", b"PK\3\4"]))
    elif how == "more":
        _write(path, content + b"more")
    elif how == "nan":
        _write(path, content[: 8 + length] + b"\xff" * len(body))
    else:
        name = rng.choice(sorted(header))
        entry = header[name]
        if how == "json":
            header[name] = mutated(entry, rng, 1)
        else:
            rng.choice((
                lambda: entry.update(dtype=rng.choice(["I8", "F64", "X", "BF16", None])),
                lambda: entry.update(shape=rng.choice([[], [-1], [1 << 62] * 2, entry["shape"][::-1], "x", [1.5]])),
                lambda: entry.update(data_offsets=rng.choice([[0, 1], [-8, 8], [5, 1], [0, 1 << 62], [], None])),
                lambda: header.pop(name),
                lambda: header.update({rng.choice(["x", "\0", "model.layers.9.mlp.up_proj.weight"]): header.pop(name)}),
            ))()  # fmt: skip
        told = json.dumps(header).encode()
        _write(path, len(told).to_bytes(8, "little") + told + body)


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """The length of a safetensors file's header, and its tensors; none where it was changed before."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
        return length, {name: entry for name, entry in header.items() if "shape" in entry}
    except (ValueError, TypeError, AttributeError):
        return length, {}


def _index(rng: random.Random, model: Path) -> None:
    """An index whose shards are missing, elsewhere, or no files."""
    path = model / "model.safetensors"
    if not path.is_file():
        return
    names = list(_header(path)[1]) or ["x"]
    (model / "sub").mkdir(exist_ok=True)
    shutil.copy(path, model.parent / "outside.safetensors")
    weight_map: Any = dict.fromkeys(names, rng.choice(_TARGETS))
    if rng.random() < 0.4:
        weight_map = rng.choice((mutated(weight_map, rng, 3), {}, None, [], "x", dict.fromkeys(names, rng.choice(ODD))))
    index = {"metadata": {"total_size": rng.choice([0, -1, None, "x"])}, "weight_map": weight_map}
    content = raw(index, rng) if rng.random() < 0.2 else json.dumps(index).encode("utf-8", "surrogatepass")
    _write(model / "model.safetensors.index.json", content)
    if rng.random() < 0.9:  # in both places they are refused
        path.rename(model / "one.safetensors")


def _entry(rng: random.Random, model: Path) -> None:
    """A file that is a folder, a link to itself, to nothing or to a device, or that is gone."""
    path = rng.choice(sorted(path for path in model.iterdir()))
    if path.is_dir():
        return
    content = path.read_bytes() if path.is_file() else b""
    path.unlink()
    how = rng.choice(("folder", "loop", "nothing", "gone", "pipe", "zero", "denied"))
    if how == "folder":
        path.mkdir()
    elif how in ("loop", "nothing", "zero"):
        path.symlink_to({"loop": path.name, "nothing": "/nowhere/at/all", "zero": "/dev/zero"}[how])
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "denied":
        path.write_bytes(content)
        path.chmod(0)


def _adapter(rng: random.Random, model: Path) -> None:
    """An adapter in the model's place, or beside it."""
    config = {"peft_type": "LORA", "base_model_name_or_path": str(model), "r": 4, "target_modules": ["q_proj"]}
    base = rng.choice(("gone", "../policy", "..", "/", "\0", model.name, "x/y", "https://x/y", "-x", ""))
    config = mutated({**config, "base_model_name_or_path": base}, rng, rng.choice([0, 0, 1, 2]))
    _write(model / "adapter_config.json", raw(config, rng))
    if rng.random() < 0.8 and (model / "model.safetensors").is_file():
        (model / "model.safetensors").rename(model / "adapter_model.safetensors")
