"""What a model is: equal numbers, equal id; what may change a number, another id, wherever a model is a key."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from prefdata.candidates.sample import sample
from prefdata.errors import ModelError, SpecConflict
from prefdata.ids import digest
from prefdata.models import identity
from prefdata.models.files import identify
from prefdata.models.identity import adapter_id, config_id, effective, text_id
from prefdata.prompts.ingest import ingest
from prefdata.scorers.open import scorer_identity
from prefdata.scores.rank import rank
from prefdata.specs import IngestSpec, RankSpec, SampleSpec
from prefdata.storage.run import Run

OTHER_NUMBERS: list[dict[str, Any]] = [
    {"rms_norm_eps": 0.5},
    {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
    {"rope_scaling": {"factor": 2.0, "rope_type": "linear"}},
    {"dtype": "bfloat16"},  # vLLM's auto computes in it, and train saves in it
    {"eos_token_id": 2},
    {"a_key_that_nobody_knows": 1},
    {"text_config": {"rms_norm_eps": 0.5}},
    {"id2label": {"0": "good"}},
]
"""Changes of a config.json that may change a number or a text."""


@pytest.fixture
def policy(tiny_policy: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_policy, tmp_path / "policy")


def config_of(folder: Path, config: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return config_id(folder)


def test_order_and_formatting_make_no_other_model(tmp_path: Path) -> None:
    """Two ways to write one config: keys in another order, white space, 1e-05 for 0.00001, 10000 for 10000.0."""
    one = '{"eps": 0.00001, "theta": 10000.0, "nested": {"a": [1, 2.0], "b": null}, "name": "\\u00e9"}'
    other = '{\n "name": "é",\n "nested": {"b": null, "a": [1.0, 2]},\n "theta": 10000, "eps": 1e-05\n}'
    assert config_of(tmp_path, one) == config_of(tmp_path, other)
    assert config_of(tmp_path, one) != config_of(tmp_path, one.replace("[1, 2.0]", "[2.0, 1]"))
    assert config_of(tmp_path, {"a": True}) != config_of(tmp_path, {"a": 1})
    assert config_of(tmp_path, {"a": None}) != config_of(tmp_path, {})


def test_the_id_of_a_config_is_the_hash_of_its_effective_values(tmp_path: Path) -> None:
    """The canonical JSON of each file's values: no unused key, `torch_dtype` as `dtype`, whole floats as integers."""
    made = config_of(tmp_path, {"use_cache": True, "torch_dtype": "float32", "eps": 1e-05, "theta": 1e4})
    assert made == digest({"config.json": {"dtype": "float32", "eps": 0.00001, "theta": 10000}})


@pytest.mark.parametrize("key", sorted(identity.UNUSED))
def test_a_key_that_no_number_depends_on_does_not_count(tmp_path: Path, key: str) -> None:
    plain = {"eps": 1e-5, "text_config": {"eps": 1e-6}}
    named = {"eps": 1e-5, key: "x", "text_config": {"eps": 1e-6, key: False}}
    assert config_of(tmp_path, named) == config_of(tmp_path, plain)


@pytest.mark.parametrize("change", OTHER_NUMBERS, ids=lambda change: next(iter(change)))
def test_a_changed_config_is_another_model(policy: Path, edit_json, change: dict[str, Any]) -> None:
    before = identify(str(policy), "causal-lm")
    edit_json(policy / "config.json", **change)
    after = identify(str(policy), "causal-lm")
    assert after.revision != before.revision
    assert after.revision.partition(".")[0] == before.revision.partition(".")[0]  # the weights' part says what changed


def test_the_older_name_of_dtype_is_the_same_setting(tmp_path: Path) -> None:
    old, new = ({key: "bfloat16", "vision_config": {key: "float16"}} for key in ("torch_dtype", "dtype"))
    assert config_of(tmp_path, old) == config_of(tmp_path, new) != config_of(tmp_path, {})
    assert effective({"torch_dtype": "float16", "dtype": "bfloat16"}) == {"dtype": "bfloat16"}  # as transformers has it


def test_numbers_that_json_lacks_can_be_hashed(tmp_path: Path) -> None:
    """Mamba 2's config.json has `"time_step_limit": [0.0, Infinity]`."""
    ids = {config_of(tmp_path, f'{{"limit": [0.0, {number}]}}') for number in ("Infinity", "-Infinity", "NaN", "1e999")}
    assert len(ids) == 3  # 1e999 is infinite too


@pytest.mark.parametrize(
    "name",
    ["config.4.0.0.json", "quantize_config.json", "hf_quant_config.json", "modules.json", "1_Pooling/config.json"],
)
def test_configs_beside_config_json_count(policy: Path, name: str) -> None:
    before = config_id(policy)
    (policy / name).parent.mkdir(exist_ok=True)
    (policy / name).write_text('[{"bits": 4}]')
    changed = config_id(policy)
    (policy / name).write_text('[ {"bits" : 4.0} ]')
    assert config_id(policy) == changed != before


@pytest.mark.parametrize("name", ["trainer_state.json", "README.md", "_spec.json", "._config.json", "metrics.jsonl"])
def test_other_files_do_not_count(policy: Path, name: str) -> None:
    before = identify(str(policy), "causal-lm")
    (policy / name).write_bytes(b'{"a": "\xff"}')
    after = identify(str(policy), "causal-lm")
    assert (after.revision, after.text_revision) == (before.revision, before.text_revision)


def test_a_config_that_is_no_json_counts_by_its_bytes(policy: Path) -> None:
    ids = set()
    for text in (b"{", b"\xff", b"[" * 100_000):
        (policy / "quant_config.json").write_bytes(text)
        ids.add(config_id(policy))
    assert len(ids) == 3


def test_of_generation_config_the_end_tokens_count(policy: Path, edit_json) -> None:
    file, before = policy / "generation_config.json", text_id(policy)
    edit_json(file, temperature=0.1, max_new_tokens=3, eos_token_id=[3, 2])  # never used; the same two end tokens
    assert text_id(policy) == before
    edit_json(file, eos_token_id=2)
    one = text_id(policy)
    edit_json(file, eos_token_id=[2])
    assert text_id(policy) == one != before
    file.unlink()
    assert text_id(policy) not in (one, before)


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "tokenizer.4.0.0.json",
        "vocab.txt",
        "merges.txt",
        "spiece.model",
        "added_tokens.json",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
    ],
)
def test_what_makes_tokens_counts(policy: Path, name: str) -> None:
    before = text_id(policy)
    (policy / name).parent.mkdir(exist_ok=True)
    (policy / name).write_text('{"new": 1}')
    assert text_id(policy) != before


def test_a_tokenizer_config_saved_again_elsewhere_is_the_same(policy: Path, edit_json) -> None:
    file, before = policy / "tokenizer_config.json", text_id(policy)
    values = dict(reversed(json.loads(file.read_text()).items()))
    file.write_text(json.dumps(values | {"name_or_path": "/elsewhere", "is_local": True}, indent=7))
    assert text_id(policy) == before
    edit_json(file, add_bos_token=False)
    assert text_id(policy) != before


def test_a_version_that_decides_how_text_is_split_counts(policy: Path, edit_json) -> None:
    """transformers replaces a Mistral tokenizer's regular expression only where config.json has a version below 5."""
    config, tokenizer = policy / "config.json", policy / "tokenizer_config.json"
    edit_json(config, model_type="mistral", transformers_version="4.57.0")
    plain = text_id(policy)
    edit_json(config, transformers_version="5.0.0")
    assert text_id(policy) == plain
    edit_json(tokenizer, fix_mistral_regex=True)
    new = text_id(policy)
    edit_json(config, transformers_version="4.57.0")
    assert text_id(policy) not in (new, plain)


def save_adapter(folder: Path, config: str, weights: bytes = b"\0") -> str:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(config)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return adapter_id(folder)


def test_an_adapter_is_its_weights_and_its_config(tmp_path: Path) -> None:
    one = save_adapter(tmp_path, '{"r": 8, "lora_alpha": 16, "base_model_name_or_path": "here"}')
    assert one == save_adapter(tmp_path, '{"lora_alpha": 16.0, "base_model_name_or_path": "there", "r": 8}')
    assert one != save_adapter(tmp_path, '{"r": 8, "lora_alpha": 32}')
    assert one != save_adapter(tmp_path, '{"r": 8, "lora_alpha": 16}', b"\1")
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match=r"not a LoRA adapter: it holds no adapter_config\.json"):
        adapter_id(tmp_path)


RANKED_BY: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "reward_model": lambda lm, rm: {"reward_model": rm},
    "pairwise classifier": lambda lm, rm: {"pairwise": rm},
    "pairwise": lambda lm, rm: {"pairwise": lm},
    "pointwise": lambda lm, rm: {"pointwise": lm},
    "judge": lambda lm, rm: {"judge": lm},
    "implicit": lambda lm, rm: {"implicit": lm, "reference": f"{lm}-before"},
    "implicit's reference": lambda lm, rm: {"implicit": f"{lm}-before", "reference": lm},
    "mean_logprob": lambda lm, rm: {"mean_logprob": lm},
    "states": lambda lm, rm: {"similarity": "states", "reference": lm},
}
"""Every kind of scorer with a model, by its settings for a causal LM and a reward model."""


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("kind", RANKED_BY)
def test_a_changed_model_is_another_scorer(
    policy: Path, tiny_reward_model: Path, tmp_path: Path, edit_json, kind: str, file: str
) -> None:
    reward_model = shutil.copytree(tiny_reward_model, tmp_path / "reward")
    shutil.copytree(policy, tmp_path / "policy-before")
    spec = RankSpec(**RANKED_BY[kind](str(policy), str(reward_model)))
    before = scorer_identity(spec)
    assert scorer_identity(spec) == before
    for folder in (policy, reward_model):
        edit_json(folder / file, a_new_key=1)
    assert scorer_identity(spec) != before


def test_a_judges_adapter_engine_and_servers_tokenizer_are_part_of_it(
    policy: Path, tmp_path: Path, edit_json, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = tmp_path / "adapter"
    save_adapter(adapter, '{"r": 1}')
    spec = RankSpec(judge=str(policy), lora=str(adapter), engine="transformers")
    before = scorer_identity(spec)
    assert (
        scorer_identity(RankSpec(judge=str(policy), lora=str(shutil.copytree(adapter, tmp_path / "moved")))) == before
    )
    save_adapter(adapter, '{"r": 2}')
    assert scorer_identity(spec)["lora"] != before["lora"]
    served = RankSpec(judge="m", engine="openai", tokenizer=str(policy))
    before = scorer_identity(served)
    assert before["judge"] == "m"
    edit_json(policy / "tokenizer_config.json", a_new_key=1)
    assert scorer_identity(served) != before
    assert "tokenizer" not in scorer_identity(RankSpec(judge="m", engine="openai"))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    (tmp_path / "asked.jsonl").write_text('{"prompt": "Say one."}\n{"prompt": "Say two."}\n')
    ingest(run, [str(tmp_path / "asked.jsonl")], IngestSpec(test=0))
    return run


def texts(run: Run, name: str) -> dict[str, str]:
    parts = (run.path / "candidates" / f"sampler={name}").glob("part-*.parquet")
    rows = (row for part in parts for row in pq.read_table(part, partitioning=None).to_pylist())
    return {row["candidate_id"]: row["text"] for row in rows}


@pytest.mark.parametrize("change", [{"rms_norm_eps": 0.5}, {"rope_parameters": {"rope_theta": 7.0}}])
def test_no_candidate_of_another_config_under_the_same_id(run: Run, policy: Path, edit_json, change) -> None:
    spec = SampleSpec(model=str(policy), n=1, max_tokens=8, name="s")
    sample(run, spec)
    before = texts(run, "s")
    config = (policy / "config.json").read_bytes()
    edit_json(policy / "config.json", **change)
    with pytest.raises(SpecConflict, match=r"model: '\w+\.\w+' -> '\w+\.\w+'"):
        sample(run, spec.model_copy(update={"n": 2}))
    assert texts(run, "s") == before
    sample(run, spec.model_copy(update={"n": 2, "name": "other"}))
    assert not set(before) & set(texts(run, "other"))
    (policy / "config.json").write_bytes(config)
    sample(run, spec.model_copy(update={"n": 2}))
    assert texts(run, "s").items() > before.items()


def test_no_score_of_another_config_beside_the_first(
    run: Run, policy: Path, tiny_reward_model: Path, edit_json
) -> None:
    sample(run, SampleSpec(model=str(policy), n=1, max_tokens=8, name="s"))
    reward_model = shutil.copytree(tiny_reward_model, policy.parent / "reward")
    spec = RankSpec(reward_model=str(reward_model), name="rm")
    rank(run, spec)
    edit_json(reward_model / "config.json", rms_norm_eps=0.5)
    with pytest.raises(SpecConflict, match="reward_model: "):
        rank(run, spec)


def test_a_training_from_another_config_is_another(policy: Path, tmp_path: Path, edit_json) -> None:
    from prefdata.train.specs import DpoSpec, RmSpec
    from prefdata.train.train import train_dpo, train_rm

    data = tmp_path / "pairs.jsonl"
    data.write_text('{"prompt": "Say one. ", "chosen": "good film", "rejected": "bad"}\n')
    dpo = DpoSpec(model=str(policy), batch_size=4)
    train_dpo(data, dpo, tmp_path / "dpo")
    scratch = RmSpec(model=str(policy), from_scratch=True, batch_size=4)
    train_rm(data, scratch, tmp_path / "rm")
    edit_json(policy / "config.json", rms_norm_eps=0.5)
    for train, spec, out in ((train_dpo, dpo, "dpo"), (train_rm, scratch, "rm")):
        with pytest.raises(SpecConflict, match="model: "):
            train(data, spec, tmp_path / out)


def test_a_reference_of_another_config_is_computed_again(policy: Path, tmp_path: Path, edit_json) -> None:
    from prefdata.pairs.pair import pair
    from prefdata.specs import PairSpec
    from prefdata.train.specs import DpoSpec
    from prefdata.train.train import train_dpo

    run = Run(tmp_path / "paired")
    row = {"prompt": "Say one.", "responses": ["good film", "bad"], "r": [2, 1]}
    (tmp_path / "rated.jsonl").write_text(json.dumps(row) + "\n")
    ingest(run, [str(tmp_path / "rated.jsonl")], IngestSpec.parse({"as": "candidates", "test": 0.0, "score": ("r",)}))
    pair(run, PairSpec(selector="all", scorer="rated-r", strategy="best-worst"))
    spec = DpoSpec(model=str(policy), batch_size=1)
    train_dpo(run.path, spec, tmp_path / "one")
    first = set((run.path / "_reference").iterdir())
    edit_json(policy / "config.json", rms_norm_eps=0.5)
    train_dpo(run.path, spec, tmp_path / "two")
    assert set((run.path / "_reference").iterdir()) > first
