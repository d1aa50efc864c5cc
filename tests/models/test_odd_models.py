"""Models with recurrent states, capped attention, other heads and odd padding compute what transformers computes."""

from __future__ import annotations

import json
import os

import pytest
import torch
import transformers as T
from conftest import save_tokenizer
from safetensors.torch import load_file, save_file

from prefdata.engines.hf.batch_state import BatchState, WholeRows, pick_batch_state
from prefdata.errors import BadRows, ModelError
from prefdata.explore.reward_model_checks import check
from prefdata.models.files import ModelFiles, identify
from prefdata.scorers.causal_lm.likelihood import Continuation, LanguageModel, MeanLogprob
from prefdata.scorers.classifier.backbones import CachedBackbone
from prefdata.scorers.classifier.hf import RewardModel
from prefdata.scorers.classifier.pairwise import PairwiseReward
from prefdata.scorers.protocol import Comparison, ScoringItem
from prefdata.train.specs import SftSpec
from prefdata.train.train import train_sft

TOKENS = {"vocab_size": 260, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "initializer_range": 0.3,
    **TOKENS,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 16}


def gemma2():
    return T.Gemma2ForCausalLM(T.Gemma2Config(head_dim=8, attn_logit_softcapping=1.0, query_pre_attn_scalar=1, **SIZES))


def opt():
    config = {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3}
    return T.OPTForCausalLM(T.OPTConfig(**SIZES, **config))


def falcon_h1():
    return T.FalconH1ForCausalLM(T.FalconH1Config(mamba_d_ssm=64, head_dim=8, lm_head_multiplier=0.5, **MAMBA, **SIZES))


def mamba():
    return T.MambaForCausalLM(T.MambaConfig(hidden_size=32, num_hidden_layers=2, **TOKENS))


def lfm2():
    return T.Lfm2ForCausalLM(T.Lfm2Config(layer_types=["conv", "full_attention"], **SIZES))


def recurrent_gemma():
    return T.RecurrentGemmaForCausalLM(
        T.RecurrentGemmaConfig(lru_width=32, attention_window_size=64, block_types=["recurrent", "attention"], **SIZES)
    )


def minimax():
    layers = ["linear_attention", "full_attention"]
    return T.MiniMaxForCausalLM(
        T.MiniMaxConfig(layer_types=layers, head_dim=8, num_local_experts=2, block_size=16, **SIZES)
    )


@pytest.mark.parametrize("make", [mamba, lfm2, falcon_h1, recurrent_gemma, minimax])
@torch.inference_mode()
def test_rows_that_are_reordered_and_appended_give_what_one_pass_gives(make):
    torch.manual_seed(0)
    net = make().eval()
    state = pick_batch_state(net)
    assert state is (WholeRows if make in (recurrent_gemma, minimax) else BatchState)
    texts = [[5, 6, 7], [9, 8, 7, 6, 5, 4], [5, 6, 7]]
    rows = state(net, [tuple(text) for text in texts], 96)
    for step in range(4):
        for row, text in enumerate(texts):
            alone = net(torch.tensor([text]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(rows.logits[row], alone, atol=1e-3, rtol=1e-3)
        tokens = [11, 12 + step, 13][: len(texts)]
        rows.append(torch.tensor(tokens))
        texts = [[*text, token] for text, token in zip(texts, tokens, strict=True)]
        index = [2, 0, 1] if step < 2 else [1, 0]
        rows.select(torch.tensor(index))
        texts = [texts[i] for i in index]


@pytest.mark.parametrize("make", [gemma2, opt, falcon_h1])
def test_a_likelihood_is_that_of_the_model_itself_with_its_caps_and_factors(make, tmp_path):
    torch.manual_seed(0)
    net = make().eval()
    net.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    net.set_attn_implementation("eager")
    asked = [Continuation((1, 5, 6), (7, 8, 9)), Continuation((1, 9), (4, 2))]
    found = LanguageModel(identify(str(tmp_path), "causal-lm"), device="cpu").sums(asked)
    for one, logp in zip(asked, found, strict=True):
        with torch.inference_mode():
            logps = net(torch.tensor([[*one.prompt, *one.ids]])).logits[0].double().log_softmax(-1)
        start = len(one.prompt) - 1
        assert logp == pytest.approx(sum(float(logps[start + i, t]) for i, t in enumerate(one.ids)), abs=1e-4)


@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_a_padding_token_outside_the_embedding_changes_no_likelihood(part, tmp_path, make_policy, edit_json):
    folder = make_policy(tmp_path, vocab_size=259, tokenizer={"pad_token": "[PAD]"} if part == "tokenizer" else None)
    edit_json(folder / "config.json", pad_token_id=260 if part == "model" else None)
    model = LanguageModel(identify(str(folder), "causal-lm"), device="cpu")
    asked = [Continuation((1, 5, 6), (7, 8, 9)), Continuation((1, 9), (4, 2))]
    assert model.sums(asked) == pytest.approx([model.sums([one])[0] for one in asked], abs=1e-4)


def test_a_shared_prompt_whose_computation_raises_is_computed_whole(tiny_reward_model, monkeypatch):
    """Falcon's and MiniMax's code raises on prompts that were computed before."""

    def fail(*_: object) -> None:
        raise IndexError("tuple index out of range")

    files = identify(str(tiny_reward_model), "reward-model")
    prompt = ({"role": "user", "content": "Say something."},)
    items = [ScoringItem(str(i), prompt, "answer " * i, False) for i in range(4)]
    expected = {one.key: one.score for one in RewardModel(files, device="cpu", share_prompts=False).score(items)}
    monkeypatch.setattr(CachedBackbone, "go_on", fail)
    model = RewardModel(files, device="cpu")
    assert {one.key: one.score for one in model.score(items)} == pytest.approx(expected, abs=1e-5)
    assert model.notes == ("A prompt is computed again for each candidate: the model's code raises IndexError.",)


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514}, 512),
        ({"model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0}, 512),
        ({"model_type": "mpt", "max_seq_len": 2048}, 2048),
    ],
)
def test_the_context_is_what_the_positions_hold(config, length):
    assert ModelFiles("m", "r", None, config).context_length == length


HELD, LACKED = "aaa", "a\U0001f600b"  # the second has tokens that an embedding of 240 lacks


def asked(*answers: str) -> list[ScoringItem]:
    return [ScoringItem(text, ({"role": "user", "content": "Say it."},), text, False) for text in answers]


def test_a_token_without_an_embedding_is_a_reason_and_no_error(make_policy, make_reward_model, tmp_path):
    """Tokens are added to a tokenizer and the model is not made larger; on a GPU such an id ends the process."""
    policy = make_policy(tmp_path / "policy", vocab_size=240)
    reward = make_reward_model(tmp_path / "reward", vocab_size=240)
    opened = [
        MeanLogprob(identify(str(policy), "causal-lm"), device="cpu"),
        RewardModel(identify(str(reward), "reward-model"), device="cpu"),
    ]
    for scorer in opened:
        found = {one.key: one for one in scorer.score(asked(HELD, LACKED))}
        assert found[HELD].score is not None
        assert (found[LACKED].score, found[LACKED].reason) == (None, "unknown_token")


def test_a_comparison_of_a_token_without_an_embedding_is_none(make_reward_model, tmp_path):
    files = identify(str(make_reward_model(tmp_path, vocab_size=240)), "reward-model")
    model = PairwiseReward(RewardModel(files, device="cpu"), files)
    message = {"role": "user", "content": "Say it."}
    found = {
        one.key: one for one in model.compare([Comparison(text, (message,), text, HELD) for text in (HELD, LACKED)])
    }
    assert found[HELD].probability is not None
    assert (found[LACKED].verdict, found[LACKED].rationale) == ("error", "a token that the model has no embedding of")


def test_training_on_a_token_without_an_embedding_names_the_row(make_policy, tmp_path, write):
    policy = make_policy(tmp_path / "policy", vocab_size=240)
    data = write({"prompt": "Say it.", "completion": HELD}, {"prompt": "Say it.", "completion": LACKED})
    with pytest.raises(BadRows, match=r"films\.jsonl.*2.*token 257 .* is not among the model's 240"):
        train_sft(data, SftSpec(model=str(policy)), tmp_path / "out")
    done = train_sft(data, SftSpec(model=str(policy), on_bad_rows="drop"), tmp_path / "out")
    assert done.report.dropped == {"unknown_token": 1}


def test_padding_that_raises_is_given_up_like_padding_that_moves_scores(tiny_reward_model, monkeypatch):
    files = identify(str(tiny_reward_model), "reward-model")
    items = asked(*("answer " * n for n in range(1, 5)))
    expected = {one.key: one.score for one in RewardModel(files, device="cpu", share_prompts=False).score(items)}
    whole = RewardModel._forward

    def forward(model: RewardModel, rows: list) -> torch.Tensor:
        if len({len(row.ids) for row in rows}) > 1:
            raise ValueError("no padding here")
        return whole(model, rows)

    monkeypatch.setattr(RewardModel, "_forward", forward)
    model = RewardModel(files, device="cpu", share_prompts=False)
    assert {one.key: one.score for one in model.score(items)} == pytest.approx(expected, abs=1e-5)
    assert model.notes == (
        "Only texts of one length are computed together: with padding the model's code raises ValueError.",
    )


def test_a_backbone_that_takes_no_cache_is_computed_whole(tiny_reward_model, monkeypatch):
    def fail(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr("prefdata.scorers.classifier.backbones.DynamicLayer", None)
    monkeypatch.setattr(CachedBackbone, "begin", fail)
    model = RewardModel(identify(str(tiny_reward_model), "reward-model"), device="cpu")
    assert all(one.score is not None for one in model.score(asked("a", "b" * 30)))
    assert "A prompt is computed again for each candidate" in model.notes[0]


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_in_a_models_folder_is_neither_run_nor_asked_about(file, tmp_path, make_policy, edit_json, monkeypatch):
    """Unless told, transformers asks at the terminal whether to run it."""
    folder = make_policy(tmp_path / "model")
    (folder / "x.py").write_text("raise SystemExit('it ran')\n")
    kinds = {"AutoConfig": "x.Y", "AutoModelForCausalLM": "x.Y", "AutoTokenizer": ["x.Y", None]}
    edit_json(folder / file, auto_map=kinds, model_type="unheard-of", tokenizer_class="Unheard")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    with pytest.raises(ModelError):
        LanguageModel(identify(str(folder), "causal-lm"), device="cpu")


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.safetensors", "generation_config.json"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "nothing", "device"])
def test_what_should_be_a_file_of_a_model_and_is_none_is_named(name, kind, tmp_path, make_policy):
    """A reader of a pipe or of a device waits for ever."""
    path = make_policy(tmp_path / "model") / name
    path.unlink()
    if kind in ("folder", "pipe"):
        path.mkdir() if kind == "folder" else os.mkfifo(path)
    else:
        path.symlink_to({"loop": name, "nothing": "/nowhere", "device": "/dev/zero"}[kind])
    with pytest.raises(ModelError) as error:
        identify(str(tmp_path / "model"), "causal-lm")
    assert f"{path} is a" in str(error.value)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", "", "a.json", 3, None])
def test_an_index_names_weights_beside_it_alone(shard, tmp_path, make_policy):
    folder = make_policy(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(ModelError, match="which is no safetensors file beside it"):
        identify(str(folder), "causal-lm")


@pytest.mark.parametrize("limit", ["128", [1]])
def test_a_tokenizer_of_odd_settings_is_named(limit, tmp_path, make_policy, edit_json):
    folder = make_policy(tmp_path / "model")
    edit_json(folder / "tokenizer_config.json", model_max_length=limit)
    with pytest.raises(ModelError, match="cannot load the tokenizer of"):
        LanguageModel(identify(str(folder), "causal-lm"), device="cpu")


@pytest.mark.parametrize(("key", "value"), [("num_hidden_layers", 1 << 40), ("vocab_size", 1 << 31)])
def test_a_config_of_a_network_far_larger_than_its_weights(key, value, tmp_path, make_policy, edit_json):
    """Layers would be made until memory ends."""
    folder = make_policy(tmp_path / "model")
    edit_json(folder / "config.json", **{key: value})
    with pytest.raises(ModelError, match=rf"config.json says {key} [\d,]+, and the weights hold 21 tensors"):
        identify(str(folder), "causal-lm")


def test_a_config_that_names_no_size(tmp_path, make_policy):
    """transformers would fill in a network of 7 billion parameters."""
    folder = make_policy(tmp_path / "model")
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    with pytest.raises(ModelError, match=r"config.json names no size of the network"):
        identify(str(folder), "causal-lm")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"x": "\\ud83d"}', "[" * 5000])
def test_a_broken_config_is_named_before_anything_is_computed(name, content, tmp_path, make_policy):
    """Of generation_config.json the end tokens would be missing in silence; training would fail when it saves."""
    path = make_policy(tmp_path / "model") / name
    path.write_text(content)
    with pytest.raises(ModelError, match=rf"{name}.*(again|is needed)"):
        identify(str(tmp_path / "model"), "causal-lm")


def test_a_vocabulary_without_the_texts_characters_is_named(tmp_path, make_policy):
    folder = make_policy(tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = {"a": 5, **{token: number for number, token in enumerate(("<pad>", "<bos>", "<eos>", "<eot>"))}}
    tokenizer["model"] = {"type": "WordPiece", "vocab": vocabulary, "unk_token": "[UNK]", "max_input_chars_per_word": 9}
    tokenizer["model"]["continuing_subword_prefix"] = "##"
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    model = LanguageModel(identify(str(folder), "causal-lm"), device="cpu")
    with pytest.raises(ModelError, match="cannot tokenise a text: WordPiece error"):
        model.chat.encode(["other words"], complete=False)


def test_a_reward_model_whose_scores_are_no_numbers_is_named_by_its_check(tmp_path, make_reward_model):
    folder = make_reward_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    save_file({name: torch.full_like(one, torch.nan) for name, one in weights.items()}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="gives no text a score"):
        check(str(folder), engine="transformers", device="cpu")
