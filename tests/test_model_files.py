"""A model is found, or the message says what is missing: what can be wrong with a folder, before an engine starts."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prefdata.errors import ModelError
from prefdata.models import files, identity
from prefdata.models.files import identify


@pytest.fixture
def policy(tiny_policy, tmp_path):
    return shutil.copytree(tiny_policy, tmp_path / "policy")


@pytest.fixture
def reward_model(tiny_reward_model, tmp_path):
    return shutil.copytree(tiny_reward_model, tmp_path / "reward")


def refused(model, kind="causal-lm", **options):
    with pytest.raises(ModelError) as caught:
        identify(str(model), kind, **options)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_whole_folder(policy):
    files = identify(str(policy), "causal-lm")
    assert (files.name, files.path, files.folder()) == (str(policy), policy, policy)
    assert files.architecture == "LlamaForCausalLM"
    assert files.context_length == 128


def test_the_revision_is_the_hash_of_the_weights_and_of_the_config(policy):
    weights = policy / "model.safetensors"
    data = weights.read_bytes()
    expected = hashlib.sha256(f"model.safetensors\0{len(data)}\0".encode() + data).hexdigest()[:20]
    assert identify(str(policy), "causal-lm").revision == f"{expected}.{identity.config_id(policy)}"
    assert identify(str(policy), "causal-lm", weights=False).revision == identity.config_id(policy)
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert not identify(str(policy), "causal-lm").revision.startswith(expected)


def test_large_weights_are_hashed_in_blocks_and_the_revision_says_so(policy, monkeypatch):
    weights = policy / "model.safetensors"
    whole = identify(str(policy), "causal-lm").revision
    monkeypatch.setattr(identity, "_WHOLE_BYTES", 1000)
    monkeypatch.setattr(identity, "_BLOCK_BYTES", 1000)
    monkeypatch.setattr(identity, "_SAMPLED_BLOCKS", 10)
    sampled = identify(str(policy), "causal-lm").revision
    assert sampled.startswith("sampled-")
    assert sampled != f"sampled-{whole}"
    data = weights.read_bytes()
    for place in (0, len(data) - 1):  # the first and the last block are always among those read
        changed = bytearray(data)
        changed[place] ^= 1
        weights.write_bytes(changed)
        blocks = [b"".join(identity._blocks(weights, 10))]
        weights.write_bytes(data)
        assert blocks != [b"".join(identity._blocks(weights, 10))]


def test_no_such_folder_names_the_near_one(policy):
    said = refused(policy.parent / "polcy")
    assert said.startswith(f"there is no folder {policy.parent / 'polcy'}.")
    assert f'Did you mean "{policy}"?' in said


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "nowhere/", "~/nowhere-at-all"])
def test_what_looks_like_a_path_is_not_looked_up_on_the_hub(name):
    assert refused(name).startswith(f"there is no folder {name}.")


def test_a_missing_folder_inside_a_present_one_is_no_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "policy").mkdir(parents=True)
    assert 'Did you mean "models/policy"?' in refused("models/polici")


def test_a_file_is_no_model(policy):
    assert "is a file, and a model is a folder" in refused(policy / "config.json")


def test_no_config(policy):
    (policy / "config.json").unlink()
    assert f"{policy} holds no config.json" in refused(policy)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_broken_config(policy, text):
    (policy / "config.json").write_bytes(text.encode("latin-1"))
    assert str(policy / "config.json") in refused(policy)


def test_no_weights(policy):
    (policy / "model.safetensors").unlink()
    assert f"{policy} holds no weights" in refused(policy)


def test_pickled_weights_are_not_loaded(policy):
    (policy / "model.safetensors").rename(policy / "pytorch_model.bin")
    assert "pickled weights" in refused(policy)


def test_an_adapter_without_a_model_is_none(policy):
    (policy / "model.safetensors").rename(policy / "adapter_model.safetensors")
    (policy / "adapter_config.json").write_text("{}")
    assert "names no model that it belongs to" in refused(policy)


def test_weights_that_are_there_twice(sharded, tiny_policy):
    """transformers reads model.safetensors and vLLM the shards: the id of one names the numbers of the other."""
    shutil.copy(tiny_policy / "model.safetensors", sharded)
    assert "holds weights twice" in refused(sharded)


def test_weights_under_a_name_that_only_transformers_reads(policy, edit_json):
    shutil.copy(policy / "model.safetensors", policy / "other.safetensors")
    edit_json(policy / "config.json", transformers_weights="other.safetensors")
    assert "names other weights" in refused(policy)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_weights_cut_short(policy, keep):
    weights = policy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    assert "is not a whole safetensors file" in refused(policy)


def test_a_pointer_of_git_lfs_is_no_weight(policy):
    (policy / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 1\n")
    assert "is not a whole safetensors file" in refused(policy)


@pytest.fixture
def sharded(tiny_policy, tmp_path):
    import transformers

    folder = shutil.copytree(tiny_policy, tmp_path / "sharded")
    (folder / "model.safetensors").unlink()
    transformers.AutoModelForCausalLM.from_pretrained(tiny_policy).save_pretrained(folder, max_shard_size="100KB")
    return folder


def test_shards(sharded):
    shards = sorted(sharded.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert len(identify(str(sharded), "causal-lm").revision) == 20 + 1 + 20
    shards[1].unlink()
    assert f"lacks 1 of the {len(shards)} weight files of its index (first: {shards[1].name})" in refused(sharded)


def test_an_empty_index(sharded):
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert "has an empty index" in refused(sharded)


def test_no_tokenizer(policy):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (policy / name).unlink()
    assert f"{policy} holds no tokenizer" in refused(policy)
    assert identify(str(policy), "causal-lm", tokenizer=False).path == policy


def test_a_causal_lm_is_no_reward_model(policy):
    said = refused(policy, "reward-model")
    assert said.startswith(f"{policy} is a LlamaForCausalLM. A reward model")
    assert "LlamaForSequenceClassification" in said


def test_a_reward_model_is_no_policy(reward_model):
    assert identify(str(reward_model), "reward-model").architecture == "LlamaForSequenceClassification"
    said = refused(reward_model, "causal-lm")
    assert said.startswith(f"{reward_model} is a LlamaForSequenceClassification. A causal language model")


def test_a_classifier_with_two_labels_is_read_by_name(reward_model, edit_json):
    edit_json(reward_model / "config.json", id2label={"1": "yes", "0": "no"})
    assert files.label_names(identify(str(reward_model), "reward-model").config) == ("no", "yes")
    edit_json(reward_model / "config.json", id2label=None)  # what transformers takes a silent config to mean
    assert files.label_names(identify(str(reward_model), "reward-model").config) == ("LABEL_0", "LABEL_1")


def test_an_encoder_decoder_is_no_causal_lm(policy, edit_json):
    edit_json(policy / "config.json", architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True)
    assert "is a T5ForConditionalGeneration" in refused(policy)


def test_no_architecture(policy, edit_json):
    edit_json(policy / "config.json", architectures=None)
    assert "names no architecture" in refused(policy)


@pytest.mark.parametrize("name", ["gpt2-nowhere", "org/name"])
def test_a_hub_name_without_a_network(name):
    said = refused(name)
    assert said.startswith(f"there is no folder {name} here, and the Hugging Face hub cannot be reached")


def test_a_hub_name_from_the_cache(tiny_policy, tmp_path, monkeypatch):
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--org--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    shutil.copytree(tiny_policy, repo / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    files = identify("org/tiny", "causal-lm")
    assert (files.revision, files.path) == (commit, None)
    assert files.folder() == repo / "snapshots" / commit
    assert refused("org/tiny", "reward-model").startswith("org/tiny is a LlamaForCausalLM.")


@pytest.mark.parametrize(
    ("config", "positions"),
    [({"n_positions": 7}, 7), ({"text_config": {"max_position_embeddings": 9}}, 9), ({"hidden_size": 3}, None)],
)
def test_the_context_length_of_other_configs(policy, config, positions):
    (policy / "config.json").write_text(json.dumps({"architectures": ["XForCausalLM"], **config}))
    assert identify(str(policy), "causal-lm").context_length == positions


def test_finding_a_model_loads_no_framework(tiny_policy):
    code = (
        "import sys; from prefdata.models.files import identify; identify(sys.argv[1], 'causal-lm');"
        "print([m for m in ('torch', 'transformers', 'vllm', 'huggingface_hub') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tiny_policy)], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_a_relative_path_is_resolved(policy, monkeypatch):
    monkeypatch.chdir(policy.parent)
    files = identify("policy", "causal-lm")
    assert (files.name, files.path) == ("policy", Path(policy))
