"""A reward model's score is its raw logit for one exact text, whatever stands beside it in a batch."""

from __future__ import annotations

import json
import math
import random
import shutil

import pytest
import torch
from conftest import save_tokenizer
from transformers import BertConfig, BertForSequenceClassification

from prefdata import ids
from prefdata.errors import ModelError, UsageError
from prefdata.models.files import identify
from prefdata.scorers.classifier.hf import RewardModel
from prefdata.scorers.protocol import ScoringItem

PROMPT = ({"role": "user", "content": "Say something."},)


def items(answers: list[str]) -> list[ScoringItem]:
    return [ScoringItem(str(i), PROMPT, text, False) for i, text in enumerate(answers)]


ANSWERS = ["", " ", "yes", "no, never", "é 🎬", "long " * 12, "<eos>", "<pad>", "yes<pad>", "a", "ab", "abc"]


def open_model(folder, **options) -> RewardModel:
    return RewardModel(identify(str(folder), "reward-model"), device="cpu", **options)


def scored(model: RewardModel, asked: list[ScoringItem]) -> dict[str, float | None]:
    found = list(model.score(iter(asked)))
    assert sorted(s.key for s in found) == sorted(item.key for item in asked)
    return {s.key: s.score for s in found}


def one_by_one(folder, answers: list[str]) -> dict[str, float]:
    """Each text alone, unpadded, its last token's hidden state through the head: what the score is by definition."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    net = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = {}
    for i, answer in enumerate(answers):
        text = f"<bos>[user] Say something.<eot>[assistant] {answer}<eot>"
        row = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        with torch.inference_mode():
            found[str(i)] = float(net.score(net.base_model(row).last_hidden_state[0, -1]))
    return found


@pytest.mark.parametrize("budget", [1, 90, 200, 100_000])
def test_equal_to_one_by_one_whatever_the_batch_and_order(tiny_reward_model, budget):
    model = open_model(tiny_reward_model, batch_tokens=budget)
    expected = one_by_one(tiny_reward_model, ANSWERS)
    for seed in range(3):
        asked = random.Random(seed).sample(items(ANSWERS), len(ANSWERS))
        assert scored(model, asked) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("pad", ["<eos>", "<eot>", None])
def test_a_pad_token_that_is_an_end_token_changes_nothing(tiny_reward_model, tmp_path, edit_json, pad):
    """transformers' own forward reads the last token that is not the pad token: here it would miss the end."""
    folder = shutil.copytree(tiny_reward_model, tmp_path / "m")
    edit_json(folder / "config.json", pad_token_id={"<eos>": 2, "<eot>": 3, None: None}[pad])
    edit_json(folder / "tokenizer_config.json", pad_token=pad)
    model = open_model(folder)
    assert model.chat.tokenizer.pad_token == pad
    assert scored(model, items(ANSWERS)) == pytest.approx(one_by_one(tiny_reward_model, ANSWERS), abs=1e-5)


def test_a_tokenizer_that_pads_on_the_left_changes_nothing(tiny_reward_model, tmp_path, edit_json):
    folder = shutil.copytree(tiny_reward_model, tmp_path / "m")
    edit_json(folder / "tokenizer_config.json", padding_side="left")
    assert scored(open_model(folder), items(ANSWERS)) == pytest.approx(one_by_one(tiny_reward_model, ANSWERS), abs=1e-5)


def test_equal_texts_have_equal_scores_and_another_load_the_same(tiny_reward_model):
    answers = ["same", "other " * 9, "same", "x", "same"]
    first = scored(open_model(tiny_reward_model, batch_tokens=100), items(answers))
    assert first["0"] == first["2"] == first["4"]
    assert scored(open_model(tiny_reward_model, batch_tokens=100), items(answers)) == first


def test_the_hash_is_of_the_text_that_was_scored(tiny_reward_model):
    (one,) = open_model(tiny_reward_model).score(items(["yes"]))
    assert one.text_hash == ids.text_hash("<bos>[user] Say something.<eot>[assistant] yes<eot>")
    assert (one.reason, one.details) == (None, None)


def test_a_text_that_does_not_fit_has_no_score(tiny_reward_model):
    overhead = len("[user] Say something.[assistant] ") + 3
    fits, too_long = "x" * (128 - overhead), "x" * (129 - overhead)
    found = {s.key: s for s in open_model(tiny_reward_model).score(items([fits, too_long, "y"]))}
    assert (found["1"].score, found["1"].reason, found["1"].details) == (None, "too_long", {"tokens": 129})
    assert found["1"].text_hash is not None
    assert found["0"].score is not None
    assert found["2"].score is not None


def test_a_conversation_that_the_template_refuses_has_no_score(tiny_reward_model):
    odd = ScoringItem("odd", ({"role": "critic", "content": "x"},), "y", False)
    found = {s.key: s for s in open_model(tiny_reward_model).score([odd, *items(["yes"])])}
    assert (found["odd"].score, found["odd"].reason, found["odd"].text_hash) == (None, "refused_by_template", None)
    assert "unknown role critic" in found["odd"].details["error"]
    assert found["0"].score is not None


@pytest.mark.parametrize(("value", "reason"), [(float("nan"), "nan"), (float("inf"), "infinite")])
def test_what_is_no_number_is_no_score(tiny_reward_model, value, reason):
    model = open_model(tiny_reward_model)
    model._net.score.weight.data.fill_(value)
    model._net.base_model.norm.weight.data.abs_().fill_(0 if reason == "nan" else 1)
    model._net.score.register_forward_hook(lambda module, inputs, out: torch.full_like(out, value))
    (one,) = model.score(items(["yes"]))
    assert (one.score, one.reason) == (None, reason)


def test_a_model_with_a_pooler_goes_through_its_own_forward(tmp_path, tiny_reward_model):
    from transformers import BertConfig, BertForSequenceClassification

    folder = shutil.copytree(tiny_reward_model, tmp_path / "bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=260,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
        num_labels=1,
    )
    net = BertForSequenceClassification(config).eval()
    net.save_pretrained(folder)
    model = open_model(folder)
    found = scored(model, items(ANSWERS))
    for i, answer in enumerate(ANSWERS):
        row = model.chat.encode([model.chat.conversation(PROMPT, answer)], complete=True)[0]
        with torch.inference_mode():
            assert found[str(i)] == pytest.approx(float(net(torch.tensor([row])).logits), abs=1e-5)


def test_a_model_without_a_template_scores_plain_text(make_reward_model, tmp_path):
    """The score is that of the last hidden state of <bos>, the text and <eos>, computed alone."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = make_reward_model(tmp_path / "plain", tokenizer={"chat_template": None})
    model = open_model(folder)
    (one,) = model.score(items([" Yes."]))
    assert one.text_hash == ids.text_hash("Say something. Yes.")
    net = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    row = AutoTokenizer.from_pretrained(folder).encode("<bos>Say something. Yes.<eos>", add_special_tokens=False)
    with torch.inference_mode():
        expected, unclosed = (
            float(net.score(net.base_model(torch.tensor([some])).last_hidden_state[0, -1])) for some in (row, row[:-1])
        )
    assert one.score == pytest.approx(expected, abs=1e-5)
    assert one.score != pytest.approx(unclosed, abs=1e-3)


def test_a_model_with_two_labels_asks_which(make_reward_model, tmp_path):
    folder = make_reward_model(tmp_path / "two", labels=2)
    with pytest.raises(ModelError, match=r"has 2 labels \(LABEL_0, LABEL_1\).*--label"):
        open_model(folder)
    with pytest.raises(UsageError, match="has no label 'LABEL_2'"):
        open_model(folder, label="LABEL_2")


@pytest.fixture(scope="module")
def attributes(make_reward_model, tmp_path_factory):
    folder = make_reward_model(tmp_path_factory.mktemp("models") / "three", labels=3)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "helpful", "1": "safe", "2": "terse"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def by_output(model: RewardModel) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for scored in model.score(items(ANSWERS)):
        found.setdefault(scored.output, {})[scored.key] = scored.score
    return found


def test_all_labels_are_outputs_and_one_is_read_by_name_or_number(attributes):
    model = open_model(attributes, label="all")
    found = by_output(model)
    assert model.outputs == ("helpful", "safe", "terse") == tuple(found)
    assert all(len(scores) == len(ANSWERS) for scores in found.values())
    assert len({found[output]["2"] for output in found}) == 3
    assert by_output(open_model(attributes, label="safe")) == {"": pytest.approx(found["safe"], abs=1e-6)}
    assert by_output(open_model(attributes, label="2")) == {"": pytest.approx(found["terse"], abs=1e-6)}


def test_a_probability_is_a_softmax_over_labels(attributes):
    logits = by_output(open_model(attributes, label="all"))
    shares = by_output(open_model(attributes, label="all", activation="probability"))
    for key in logits["safe"]:
        weights = {output: math.exp(scores[key]) for output, scores in logits.items()}
        for output in shares:
            assert shares[output][key] == pytest.approx(weights[output] / sum(weights.values()), abs=1e-6)


def test_a_probability_is_a_sigmoid_where_labels_go_together(attributes, tmp_path, edit_json):
    folder = shutil.copytree(attributes, tmp_path / "m")
    edit_json(folder / "config.json", problem_type="multi_label_classification")
    logits = by_output(open_model(folder, label="safe"))[""]
    shares = by_output(open_model(folder, label="safe", activation="probability"))[""]
    assert shares == pytest.approx({key: 1 / (1 + math.exp(-value)) for key, value in logits.items()}, abs=1e-6)


def test_a_probability_of_one_label_is_a_sigmoid(tiny_reward_model):
    logits = by_output(open_model(tiny_reward_model))[""]
    shares = by_output(open_model(tiny_reward_model, activation="probability"))[""]
    assert shares == pytest.approx({key: 1 / (1 + math.exp(-value)) for key, value in logits.items()}, abs=1e-6)


def test_a_text_that_does_not_fit_has_no_score_under_any_label(attributes):
    found = list(open_model(attributes, label="all").score(items(["x" * 200])))
    assert [(s.output, s.score, s.reason) for s in found] == [
        (output, None, "too_long") for output in ("helpful", "safe", "terse")
    ]


def test_a_text_format_takes_the_templates_place(tiny_reward_model, tmp_path):
    (tmp_path / "format.txt").write_text("{{Q}}: {prompt}\nA: {response}<eos>\n")
    model = open_model(tiny_reward_model, text_format=tmp_path / "format.txt")
    (one,) = model.score(items(["{prompt}"]))
    text = "{{Q}}: Say something.\nA: {prompt}<eos>"
    assert one.text_hash == ids.text_hash(text)
    row = model.texts.encode([text])[0]
    assert (row[0], row[-1], row.count(1)) == (1, 2, 1)  # the tokenizer's begin token, the format's end token


def prompted(prompts: int, answers: list[str]) -> list[ScoringItem]:
    """Answers of several prompts, those of one prompt together."""
    asked = [({"role": "user", "content": f"{i}: " + "Say more. " * (i + 1)},) for i in range(prompts)]
    return [ScoringItem(f"{i}/{k}", m, text, False) for i, m in enumerate(asked) for k, text in enumerate(answers)]


@pytest.mark.parametrize("budget", [1, 200, 100_000])
@pytest.mark.parametrize("settings", [{}, {"attention_bias": True}, {"num_key_value_heads": 2}])
def test_a_prompt_computed_once_gives_the_scores_of_whole_texts(make_reward_model, tmp_path, budget, settings):
    folder = make_reward_model(tmp_path / "m", **settings)
    asked = prompted(4, ANSWERS)
    model = open_model(folder, batch_tokens=budget)
    shared = scored(model, asked)
    assert (bool(model._branching), model.notes) == (True, ())
    assert model._computed.needed < sum(len(row.ids) for row in model.texts.prepare(asked).rows)
    assert shared == pytest.approx(scored(open_model(folder, share_prompts=False), asked), abs=1e-5)


OTHERS = {
    "qwen2": ("Qwen2", {"num_key_value_heads": 1}),
    "gpt2": ("GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128}),
    "bloom": ("Bloom", {"n_layer": 2, "n_head": 2}),
    "mistral": ("Mistral", {"num_key_value_heads": 1, "sliding_window": 16}),
    "gemma3": ("Gemma3Text", {"num_key_value_heads": 1, "head_dim": 32, "sliding_window": 16}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_score_as_one_by_one_and_say_where_they_share_nothing(name, tiny_reward_model, tmp_path):
    import transformers

    kind, settings = OTHERS[name]
    torch.manual_seed(0)
    basics = {"vocab_size": 260, "num_labels": 1, "pad_token_id": 0, "hidden_size": 64, "num_attention_heads": 2}
    basics |= {"intermediate_size": 96, "num_hidden_layers": 2, "max_position_embeddings": 128}
    config = getattr(transformers, f"{kind}Config")(**basics, **settings)
    net = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    folder = shutil.copytree(tiny_reward_model, tmp_path / "m")
    net.save_pretrained(folder)
    model = open_model(folder)
    asked = prompted(3, ANSWERS)
    found = scored(model, asked)
    assert bool(model._branching) is (name in ("qwen2", "gpt2"))
    assert bool(model.notes) is not bool(model._branching)
    for row in model.texts.prepare(asked).rows:
        with torch.inference_mode():
            expected = float(net.score(net.base_model(torch.tensor([row.ids])).last_hidden_state[0, -1]))
        assert [found[key] for key in row.keys] == pytest.approx([expected] * len(row.keys), abs=1e-5)


def test_a_long_text_does_not_stretch_the_positions_of_others(tiny_reward_model, tmp_path, cores):
    """Where one text of a batch is longer than 40 tokens, transformers turns the positions of all of them."""
    from transformers import Phi3Config, Phi3ForSequenceClassification

    torch.manual_seed(0)
    stretched = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0] * 16,
        "long_factor": [4.0] * 16,
    }
    config = Phi3Config(
        vocab_size=260, num_labels=1, pad_token_id=0, hidden_size=64, num_attention_heads=2, intermediate_size=96,
        num_hidden_layers=2, max_position_embeddings=128, original_max_position_embeddings=40,
        rope_parameters=stretched, initializer_range=0.2,
    )  # fmt: skip
    net = Phi3ForSequenceClassification(config).eval()
    folder = shutil.copytree(tiny_reward_model, tmp_path / "m")
    net.save_pretrained(folder)
    cores(4)
    model = open_model(folder)
    asked = [ScoringItem(str(i), PROMPT, f"{i:02}", False) for i in range(62)] + [
        ScoringItem("long", PROMPT, "y" * 80, False)
    ]
    found = scored(model, asked)
    for row in model.texts.prepare(asked).rows:
        with torch.inference_mode():
            expected = float(net.score(net.base_model(torch.tensor([row.ids])).last_hidden_state[0, -1]))
        assert [found[key] for key in row.keys] == pytest.approx([expected] * len(row.keys), abs=1e-5)
    assert "positions stretch with the longest" in model.notes[0]


def test_the_padding_of_a_short_answer_to_a_long_prompt_stays_within_the_context(tiny_reward_model, tmp_path):
    """Learned positions end with the context: a place beyond it, though of padding alone, is an error."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=260, num_labels=1, pad_token_id=0, n_embd=64, n_layer=2, n_head=2, n_positions=128)
    folder = shutil.copytree(tiny_reward_model, tmp_path / "m")
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    long, short = (({"role": "user", "content": "p" * length},) for length in (90, 10))
    asked = [ScoringItem(f"long {k}", long, str(k), False) for k in range(9)]
    asked += [ScoringItem(f"short {k}", short, str(k) * (1 + 60 * k), False) for k in range(2)]
    model = open_model(folder)
    found = scored(model, asked)
    assert (bool(model._branching), model.notes) == (True, ())
    assert found == pytest.approx(scored(open_model(folder, share_prompts=False), asked), abs=1e-5)


def test_keys_and_values_that_are_wrong_are_found_out(tiny_reward_model, monkeypatch):
    """The first prompts tell: whole texts are scored then, and the note says so."""
    from prefdata.scorers.classifier import backbones

    real = backbones._cache
    monkeypatch.setattr(backbones, "_cache", lambda kept: real((keys, values * 1.1) for keys, values in kept))
    model = open_model(tiny_reward_model)
    asked = prompted(3, ANSWERS)
    found = scored(model, asked)
    (note,) = model.notes
    assert "computed again for each candidate: the scores differ by" in note
    assert found == pytest.approx(scored(open_model(tiny_reward_model, share_prompts=False), asked), abs=1e-5)


def test_a_network_that_padding_moves_scores_texts_of_one_length_together(tiny_reward_model):
    model = open_model(tiny_reward_model, share_prompts=False)
    real = model._forward
    moved = []

    def careless(rows):
        lengths = {len(row.ids) for row in rows}
        moved.append(len(lengths) > 1)
        return real(rows) + (len(lengths) > 1)

    model._forward = careless
    assert scored(model, items(ANSWERS)) == pytest.approx(one_by_one(tiny_reward_model, ANSWERS), abs=1e-5)
    assert "Only texts of one length are computed together" in model.notes[0]
    assert sum(moved) == 1  # the check alone


def test_padding_is_little(tiny_reward_model):
    draw = random.Random(0)
    answers = ["x" * draw.randint(1, 60) for _ in range(400)]
    asked = [
        ScoringItem(f"{i}", ({"role": "user", "content": f"Q{i % 25}"},), text, False) for i, text in enumerate(answers)
    ]
    model = open_model(tiny_reward_model)
    scored(model, asked)
    assert 0 < model.padding < 0.03


def test_a_text_format_needs_no_chat_template(make_reward_model, tmp_path):
    """A model with several templates, and none the default, is read by the format alone."""
    folder = make_reward_model(tmp_path / "m", tokenizer={"chat_template": {"a": "x", "b": "y"}})
    with pytest.raises(ModelError, match="several chat templates"):
        RewardModel(identify(str(folder), "reward-model"), device="cpu")
    (tmp_path / "f.txt").write_text("{prompt}{response}")
    model = RewardModel(identify(str(folder), "reward-model"), device="cpu", text_format=tmp_path / "f.txt")
    assert model.texts.encode([model.texts.text(PROMPT, "x")])[0][0] == 1


def test_weights_without_a_score_head_are_refused(tiny_policy, tmp_path, edit_json):
    """A causal LM whose config.json claims to be a reward model would get a random head, and random scores."""
    folder = shutil.copytree(tiny_policy, tmp_path / "m")
    edit_json(folder / "config.json", architectures=["LlamaForSequenceClassification"], id2label={"0": "score"})
    with pytest.raises(ModelError, match=r"lack 1 tensor \(score.weight\) of a LlamaForSequenceClassification"):
        open_model(folder)


def test_items_are_pulled_in_windows(tiny_reward_model, monkeypatch):
    from prefdata.scorers.classifier.base import Classifier

    monkeypatch.setattr(Classifier, "WINDOW", 4)
    pulled = 0

    def endless():
        nonlocal pulled
        while True:
            pulled += 1
            yield ScoringItem(str(pulled), PROMPT, f"answer {pulled}", False)

    stream = open_model(tiny_reward_model).score(endless())
    for _ in range(6):
        next(stream)
    assert pulled == 12  # the third window is tokenised while the second is scored


def small_bert(folder):
    """A network of another head: a pooled first token and a layer named `classifier`."""
    config = BertConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=1,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.mark.parametrize("bert", [False, True])
def test_scores_in_bfloat16_are_told_apart_by_a_head_in_float32(make_reward_model, tmp_path, bert):
    """Near one number bfloat16 has 1 value in 256: of 100 scores around 3 it would leave a few."""
    folder = small_bert(tmp_path) if bert else make_reward_model(tmp_path)
    model = open_model(folder, dtype="bfloat16")
    head = model._net.classifier if bert else model._net.score
    if head.bias is not None:
        torch.nn.init.constant_(head.bias, 3.0)
    found = scored(model, items([f"answer {number} " * 3 for number in range(100)]))
    assert len(set(found.values())) > 95
