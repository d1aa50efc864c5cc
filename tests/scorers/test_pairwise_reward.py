"""A pairwise classifier gives P(the answer shown first is better) of one exact text, whatever stands beside it."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from prefdata.comparisons.compare import compare
from prefdata.errors import InputError, ModelError, UsageError
from prefdata.models.files import identify
from prefdata.prompts.ingest import ingest
from prefdata.scorers.classifier.hf import RewardModel
from prefdata.scorers.classifier.pairwise import PairwiseReward
from prefdata.scorers.protocol import Comparison
from prefdata.specs import IngestSpec, RankSpec
from prefdata.storage.run import Run

PROMPT = ({"role": "user", "content": "Hi."},)
ANSWERS = ["yes", "no", "", "same", "é 🎬", "<eos>", "x<pad>", "{second}", "long " * 5]
PAIRS = [*((a, b) for a in ANSWERS[:5] for b in ANSWERS), ("same", "same")]
LAYOUT = "user: Hi.\n\nAnswer A:\n{0}\n\nAnswer B:\n{1}"


def matches(pairs) -> list[Comparison]:
    return [Comparison(str(i), PROMPT, *pair) for i, pair in enumerate(pairs)]


def open_model(folder, label=None, text_format=None, **more) -> PairwiseReward:
    files = identify(str(folder), "comparer")
    return PairwiseReward(
        RewardModel(files, device="cpu", label="0", **more), files, label=label, text_format=text_format
    )


def logits(folder: Path, text: str, template: bool = True) -> list[float]:
    """The logits of one text alone, unpadded, read where the model's kind reads them."""
    net = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    row = torch.tensor([tokenizer.encode(text, add_special_tokens=not template)])
    with torch.inference_mode():
        if hasattr(net, "score"):
            return net.score(net.base_model(row).last_hidden_state[0, -1]).double().tolist()
        return net(row).logits[0].double().tolist()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory, tiny_reward_model) -> Path:
    """A BERT of two labels, which reads its first token, with the Llama's tokenizer and template."""
    from transformers import BertConfig, BertForSequenceClassification

    folder = shutil.copytree(tiny_reward_model, tmp_path_factory.mktemp("bert") / "bert")
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=260, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=128, num_labels=2, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def two_labels(tmp_path_factory, make_reward_model) -> Path:
    return make_reward_model(tmp_path_factory.mktemp("models") / "two", labels=2)


def found_by(model: PairwiseReward, pairs) -> dict[tuple[str, str], float | None]:
    asked = matches(pairs)
    random.Random(len(pairs)).shuffle(asked)
    said = {verdict.key: verdict.probability for verdict in model.compare(asked)}
    assert sorted(said) == sorted(match.key for match in asked)
    return {pair: said[str(i)] for i, pair in enumerate(pairs)}


@pytest.mark.parametrize("kind", ["tiny_reward_model", "two_labels", "tiny_bert"])
@pytest.mark.parametrize("budget", [1, 200, 100_000])
def test_equal_to_one_by_one_whatever_the_batch_and_order(kind, budget, request):
    folder = request.getfixturevalue(kind)
    found = found_by(open_model(folder, batch_tokens=budget), PAIRS)
    for (first, second), probability in found.items():
        alone = logits(folder, f"<bos>[user] {LAYOUT.format(first, second)}<eot>")
        odds = alone[0] - (alone[1] if len(alone) > 1 else 0.0)
        assert probability == pytest.approx(sigmoid(odds), abs=1e-5)
    assert len({round(p, 4) for p in found.values()}) > 20  # it is the answers that decide


@pytest.mark.parametrize("kind", ["tiny_reward_model", "tiny_bert"])
@pytest.mark.parametrize("said", [{"padding_side": "left"}, {"pad_token": "<eos>"}, {"pad_token": None}])
def test_padding_changes_nothing(kind, said, request, tmp_path, edit_json):
    """Where pad is an end token, transformers' own forward would read the place before the end."""
    folder = shutil.copytree(request.getfixturevalue(kind), tmp_path / "m")
    edit_json(folder / "tokenizer_config.json", **said)
    if "pad_token" in said:
        edit_json(folder / "config.json", pad_token_id={"<eos>": 2, None: None}[said["pad_token"]])
    expected = found_by(open_model(request.getfixturevalue(kind)), PAIRS)
    assert found_by(open_model(folder), PAIRS) == pytest.approx(expected, abs=1e-5)


def test_which_of_two_labels_means_the_first(two_labels, tmp_path, edit_json):
    folder = shutil.copytree(two_labels, tmp_path / "m")
    edit_json(folder / "config.json", id2label={"0": "second", "1": "first"})
    by_order, by_name = found_by(open_model(folder), PAIRS), found_by(open_model(folder, label="first"), PAIRS)
    assert found_by(open_model(folder, label="1"), PAIRS) == by_name
    for pair, probability in by_order.items():
        assert probability + by_name[pair] == pytest.approx(1.0)
    with pytest.raises(UsageError, match="Did you mean"):
        open_model(folder, label="frst")


def test_three_labels_are_refused(tmp_path, make_reward_model):
    with pytest.raises(ModelError, match="has 3 labels"):
        open_model(make_reward_model(tmp_path / "three", labels=3))


def test_a_text_format_takes_the_templates_place(tiny_reward_model, tmp_path):
    file = tmp_path / "f.txt"
    file.write_text("Q: {prompt} 1: {first} 2: {second}\n")
    found = found_by(open_model(tiny_reward_model, text_format=file), PAIRS[:4])
    for (first, second), probability in found.items():
        (alone,) = logits(tiny_reward_model, f"Q: Hi. 1: {first} 2: {second}", template=False)
        assert probability == pytest.approx(sigmoid(alone), abs=1e-5)
    file.write_text("{prompt} {response}")
    with pytest.raises(InputError, match=r"\{first\} and \{second\}"):
        open_model(tiny_reward_model, text_format=file)


def test_what_cannot_be_compared_has_no_probability(tiny_reward_model):
    model = open_model(tiny_reward_model)
    odd = Comparison("odd", ({"role": "critic", "content": "x"},), "y", "\ud800")
    found = {v.key: v for v in model.compare([*matches([("x" * 128, "y"), ("y", "n")]), odd])}
    assert (found["0"].probability, found["0"].verdict) == (None, "too_long")
    assert (found["odd"].probability, found["odd"].verdict) == (None, "error")
    assert found["1"].probability is not None
    for value in (float("nan"), float("inf")):
        model._classifier._net.score.register_forward_hook(lambda m, i, out, value=value: torch.full_like(out, value))
        (one,) = model.compare(matches([("y", "n")]))
        assert (one.probability, one.verdict) == (None, "error")


@pytest.fixture
def run(tmp_path) -> Run:
    run, file = Run(tmp_path / "run"), tmp_path / "asked.jsonl"
    rows = [{"prompt": f"Say {i}.", "responses": [f"{i} {text}" for text in ("a", "bb", "ccc", "d")]} for i in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ingest(run, [str(file)], IngestSpec.parse({"as": "candidates", "test": 0.0}))
    return run


def test_as_rank_does_it(run, tiny_reward_model, tmp_path):
    """The row's probability is of the candidate that stands first, whichever was shown first."""
    done = compare(run, RankSpec(pairwise=str(tiny_reward_model), schedule="all", name="duel"))
    assert (done.report.rows_out, done.did) == (3 * 6 * 2, "made")
    text = {c["candidate_id"]: c["text"] for p in run.partitions("candidates") for c in p.read().to_pylist()}
    for row in run.partition("comparisons", "duel").read().to_pylist()[:8]:
        shown = [text[row["first_id"]], text[row["second_id"]]]
        turned = row["order"] == "second-first"
        prompt = f"user: Say {shown[0][0]}.\n\nAnswer A:\n{shown[turned]}\n\nAnswer B:\n{shown[not turned]}"
        (alone,) = logits(tiny_reward_model, f"<bos>[user] {prompt}<eot>")
        assert row["probability"] == pytest.approx(sigmoid(-alone if turned else alone), abs=1e-5)
    assert compare(run, RankSpec(pairwise=str(tiny_reward_model), schedule="all", name="duel")).did == "kept"


def test_settings_of_the_other_kind_are_refused(run, tiny_reward_model, tiny_policy, tmp_path):
    (tmp_path / "f.txt").write_text("{prompt}{first}{second}")
    with pytest.raises(UsageError, match="is a classifier, and --rubric"):
        compare(run, RankSpec(pairwise=str(tiny_reward_model), rubric="a-or-b"))
    for settings in ({"label": "0"}, {"text_format": str(tmp_path / "f.txt")}):
        with pytest.raises(UsageError, match="is a language model"):
            compare(run, RankSpec(pairwise=str(tiny_policy), **settings))
    with pytest.raises(UsageError, match="leave --engine vllm out"):
        compare(run, RankSpec(pairwise=str(tiny_policy), engine="vllm"))
    assert not (run.path / "comparisons").exists()
