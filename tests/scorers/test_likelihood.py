"""ln p of an answer is that of a plain forward pass, whatever stands beside it, and that of the trainer."""

from __future__ import annotations

import random
import shutil

import pytest
import torch

from prefdata import ids
from prefdata.chat.encoder import Chat
from prefdata.errors import ModelError
from prefdata.models.files import identify
from prefdata.scorers.causal_lm.likelihood import Continuation, ImplicitReward, LanguageModel, MeanLogprob
from prefdata.scorers.protocol import ScoringItem

PROMPT = ({"role": "user", "content": "Say something."},)
RENDERED = "<bos>[user] Say something.<eot>[assistant] "
ANSWERS = ["", " ", "yes", "no, never", "é 🎬", "long " * 12, "<pad>", "a", "ab", "abc"]


def items(answers: list[str]) -> list[ScoringItem]:
    return [ScoringItem(str(i), PROMPT, text, False) for i, text in enumerate(answers)]


def files(folder):
    return identify(str(folder), "causal-lm")


def by_definition(folder, before: str, after: str, special: bool = False) -> list[float]:
    """ln p of the tokens of `after` given `before`, from the full logits of one row alone, in float64."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Eager attention: the scaled dot-product attention of transformers leaves out the cap of Gemma 2.
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.encode(before, add_special_tokens=special)
    answer = tokenizer.encode(after, add_special_tokens=False)
    with torch.inference_mode():
        logps = net(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    return [float(logps[len(prompt) + i - 1, token]) for i, token in enumerate(answer)]


@pytest.mark.parametrize("budget", [1, 90, 300, 100_000])
def test_the_mean_is_that_of_one_row_alone_whatever_the_batch_and_order(tiny_policy, budget):
    scorer = MeanLogprob(files(tiny_policy), device="cpu", batch_tokens=budget)
    expected = {}
    for i, answer in enumerate(ANSWERS):
        tokens = by_definition(tiny_policy, RENDERED, answer + "<eot>")
        expected[str(i)] = sum(tokens) / len(tokens)
    for seed in range(3):
        found = {s.key: s.score for s in scorer.score(random.Random(seed).sample(items(ANSWERS), len(ANSWERS)))}
        assert found == pytest.approx(expected, abs=1e-5)


def test_the_sum_and_the_hash_of_the_text(tiny_policy):
    (one,) = MeanLogprob(files(tiny_policy), device="cpu").score(items(["yes"]))
    tokens = by_definition(tiny_policy, RENDERED, "yes<eot>")
    assert one.details == {"sum": pytest.approx(sum(tokens), abs=1e-5), "tokens": 4}
    assert (one.text_hash, one.reason) == (ids.text_hash(RENDERED + "yes<eot>"), None)


def test_the_end_token_may_be_left_out(tiny_policy):
    scorer = MeanLogprob(files(tiny_policy), device="cpu", end=False)
    whole, none = scorer.score(items(["yes", ""]))
    found = {s.key: s for s in (whole, none)}
    assert found["0"].details == {
        "sum": pytest.approx(sum(by_definition(tiny_policy, RENDERED, "yes")), abs=1e-5),
        "tokens": 3,
    }
    assert (found["1"].score, found["1"].reason) == (None, "empty")


def test_without_a_template_plain_text_goes_on_and_gets_the_end_token(tmp_path, make_policy):
    folder = make_policy(tmp_path / "plain", tokenizer={"chat_template": None})
    (one,) = MeanLogprob(files(folder), device="cpu").score(items([" yes"]))
    tokens = by_definition(folder, "Say something.", " yes<eos>", special=True)
    assert one.score == pytest.approx(sum(tokens) / 5, abs=1e-5)


@pytest.mark.parametrize("elements", [1, 260, 5000, 1 << 26])
def test_no_more_logits_than_asked_for_exist_and_they_are_the_same(tiny_policy, elements):
    model = LanguageModel(files(tiny_policy), device="cpu", chunk_elements=elements)
    seen = []
    model._head.lm_head.register_forward_hook(lambda module, inputs, out: seen.append(out.numel()))
    asked = [model.answer(PROMPT, answer)[1] for answer in ANSWERS]
    expected = [sum(by_definition(tiny_policy, RENDERED, answer + "<eot>")) for answer in ANSWERS]
    assert model.sums(asked) == pytest.approx(expected, abs=1e-5)
    assert max(seen) <= max(elements, 260)


FAMILIES = ["GPT2", "Gemma2", "Cohere", "Granite", "Mixtral", "Qwen2", "GPTNeoX"]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_made_as_the_family_makes_them(tmp_path, tiny_policy, family):
    """Cohere and Granite scale them, Gemma 2 caps them, Mixtral's trunk says more than states."""
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2} if family == "GPT2" else sizes
    more = {
        "Gemma2": {"head_dim": 16, "num_key_value_heads": 1, "final_logit_softcapping": 0.5},
        "Cohere": {"logit_scale": 0.3},
        "Granite": {"logits_scaling": 7.0},
        "Mixtral": {"num_key_value_heads": 1, "num_local_experts": 2},
        "Qwen2": {"num_key_value_heads": 1},
    }.get(family, {})
    config = getattr(transformers, f"{family}Config")(
        vocab_size=260, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        initializer_range=0.3, **sizes, **more,
    )  # fmt: skip
    torch.manual_seed(0)
    net = getattr(transformers, f"{family}ForCausalLM" if family != "GPT2" else "GPT2LMHeadModel")(config)
    folder = shutil.copytree(tiny_policy, tmp_path / "m")
    net.save_pretrained(folder)
    model = LanguageModel(files(folder), device="cpu", batch_tokens=200)
    asked = [model.answer(PROMPT, answer)[1] for answer in ["yes", "no, never"]]
    expected = [sum(by_definition(folder, RENDERED, answer + "<eot>")) for answer in ["yes", "no, never"]]
    assert model.sums(asked) == pytest.approx(expected, abs=1e-5)


def test_two_continuations_of_one_token_cost_one_row(tiny_policy):
    model = LanguageModel(files(tiny_policy), device="cpu")
    rows = []
    model._trunk.register_forward_pre_hook(
        lambda module, args, named: rows.append(len(named["input_ids"])), with_kwargs=True
    )
    found = model.sums([Continuation((1, 40, 41), (50,)), Continuation((1, 40, 41), (51,))])
    assert rows == [1]
    assert found[0] != found[1]


def test_choices_share_what_comes_before_them(tiny_policy):
    model = LanguageModel(files(tiny_policy), device="cpu")
    text, asked = model.choices(PROMPT, ["Good", "Bad"])
    assert text == RENDERED
    assert [len(one.ids) for one in asked] == [4, 3]
    assert model.sums(asked) == pytest.approx(
        [sum(by_definition(tiny_policy, RENDERED, label)) for label in ("Good", "Bad")], abs=1e-5
    )


@pytest.mark.parametrize("template", ["chat", "none"])
def test_the_trainer_sums_the_same_tokens(tmp_path, make_policy, template):
    """The implicit reward is what DPO's loss pushes: the same split, the same tokens, the same ln p."""
    import numpy as np
    from transformers import AutoModelForCausalLM

    from prefdata.train.batches import collate
    from prefdata.train.encode import Encoder
    from prefdata.train.logps import response_logps
    from prefdata.train.parsing import Row, parse

    folder = make_policy(tmp_path / "m", tokenizer={} if template == "chat" else {"chat_template": None})
    rows = [
        {"prompt": list(PROMPT), **{side: [{"role": "assistant", "content": text}] for side, text in pair.items()}}
        for pair in ({"chosen": "yes", "rejected": "no, never"}, {"chosen": "é 🎬", "rejected": "?"})
    ]
    items_ = parse([Row("x", n, "train", row) for n, row in enumerate(rows, 1)], "preferences", "x")
    examples = Encoder(Chat.load(folder)).encode(items_).examples
    with torch.inference_mode():
        net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        trained = response_logps(net, collate(examples, np.arange(2))).sums.flatten().tolist()
    scorer = MeanLogprob(files(folder), device="cpu")
    found = {s.key: s.details["sum"] for s in scorer.score(items(["yes", "no, never", "é 🎬", "?"]))}
    assert list(dict(sorted(found.items())).values()) == pytest.approx(trained, abs=1e-5)


def test_the_implicit_reward_is_beta_times_the_difference_of_sums(tmp_path, tiny_policy, make_policy):
    other = make_policy(tmp_path / "reference", seed=1)
    scorer = ImplicitReward(files(tiny_policy), files(other), 0.3, device="cpu", batch_tokens=300)
    found = {s.key: s for s in scorer.score(items(ANSWERS))}
    for i, answer in enumerate(ANSWERS):
        logp, reference = (sum(by_definition(folder, RENDERED, answer + "<eot>")) for folder in (tiny_policy, other))
        one = found[str(i)]
        assert one.details == {
            "logp": pytest.approx(logp, abs=2e-5),
            "logp_reference": pytest.approx(reference, abs=2e-5),
        }
        assert one.score == pytest.approx(0.3 * (logp - reference), abs=1e-5)


def test_a_policy_against_itself_has_no_implicit_reward(tiny_policy):
    scorer = ImplicitReward(files(tiny_policy), files(tiny_policy), 0.1, device="cpu")
    assert {s.score for s in scorer.score(items(ANSWERS))} == {0.0}


def test_models_with_different_tokenizers_are_refused(tmp_path, tiny_policy, edit_json):
    import json

    other = shutil.copytree(tiny_policy, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    edit_json(other / "tokenizer.json", model=tokenizer["model"])
    with pytest.raises(ModelError, match="different tokenizers"):
        ImplicitReward(files(tiny_policy), files(other), 0.1, device="cpu")


def test_what_cannot_be_scored_has_a_reason(tiny_policy):
    odd = ScoringItem("odd", ({"role": "critic", "content": "x"},), "y", False)
    found = {s.key: s for s in MeanLogprob(files(tiny_policy), device="cpu").score([odd, *items(["x" * 128, "yes"])])}
    assert (found["odd"].score, found["odd"].reason) == (None, "refused_by_template")
    assert (found["0"].score, found["0"].reason) == (None, "too_long")
    assert found["0"].details["tokens"] > 128
    assert found["1"].score is not None


def test_what_is_no_number_is_no_score(tiny_policy):
    scorer = MeanLogprob(files(tiny_policy), device="cpu")
    scorer.model._head.lm_head.weight.data.fill_(float("nan"))
    (one,) = scorer.score(items(["yes"]))
    assert (one.score, one.reason, one.details) == (None, "nan", None)


def test_equal_answers_have_equal_scores_and_another_load_the_same(tiny_policy):
    answers = ["same", "other " * 9, "same", "x", "same"]
    first = {
        s.key: s.score for s in MeanLogprob(files(tiny_policy), device="cpu", batch_tokens=150).score(items(answers))
    }
    assert first["0"] == first["2"] == first["4"]
    again = MeanLogprob(files(tiny_policy), device="cpu", batch_tokens=150)
    assert {s.key: s.score for s in again.score(items(answers))} == first
