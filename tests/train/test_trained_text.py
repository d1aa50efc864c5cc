"""What is trained is the data, and the folder says what was trained: template, variables, end tokens, plain text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import CHATML, LLAMA_3, REASONING, REASONING_KEPT, THINKING
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from prefdata.chat.encoder import Chat
from prefdata.errors import BadRows, UsageError
from prefdata.explore.reward_models import from_data, score_pairs
from prefdata.models.files import identify
from prefdata.scorers.causal_lm.likelihood import MeanLogprob
from prefdata.scorers.classifier.hf import RewardModel
from prefdata.train.encode import Encoder
from prefdata.train.parsing import Row, parse
from prefdata.train.specs import DpoSpec, RmSpec, SftSpec
from prefdata.train.train import train_dpo, train_rm, train_sft

EOT = 3


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def chats(*sides: tuple[str, str]) -> list[dict[str, Any]]:
    user = [{"role": "user", "content": "How many?"}]
    return [{"prompt": user, "chosen": assistant(a), "rejected": assistant(b)} for a, b in sides]


def shown(*contents: str) -> list[dict[str, Any]]:
    user = {"role": "user", "content": "How many?"}
    return [{"messages": [user, *assistant(content)]} for content in contents]


@pytest.fixture
def model(make_policy: Any, tmp_path: Path) -> Any:
    """`model(template, **config)`: a policy with that chat template."""

    def make(template: str | None, **config: Any) -> Path:
        return make_policy(tmp_path / "model", tokenizer={"chat_template": template}, **config)

    return make


# --- the end token ----------------------------------------------------------------------------------------------------


@pytest.fixture
def base(model: Any, edit_json: Any) -> Path:
    """A base model as Qwen2.5's: its template ends turns with <eot>, and everything else names <eos> alone."""
    folder = model(CHATML, eos_token_id=2)
    edit_json(folder / "generation_config.json", eos_token_id=2)
    return folder


@pytest.mark.parametrize("trainer", ["sft", "dpo"])
def test_the_end_token_that_was_trained_ends_generation(base, tmp_path, write_jsonl, trainer):
    if trainer == "sft":
        train_sft(write_jsonl(tmp_path / "x.jsonl", shown("Eight.") * 4), SftSpec(model=str(base)), tmp_path / "out")
    else:
        data = write_jsonl(tmp_path / "x.jsonl", chats(("Eight.", "Six.")) * 4)
        train_dpo(data, DpoSpec(model=str(base)), tmp_path / "out")
    out = tmp_path / "out"
    assert GenerationConfig.from_pretrained(out).eos_token_id == [2, EOT]
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == [2, EOT]
    assert AutoTokenizer.from_pretrained(out).eos_token == "<eos>"
    assert Chat.load(out).notes == ()


def test_generation_defaults_beside_the_end_tokens_stay(base, tmp_path, write_jsonl, edit_json):
    edit_json(base / "generation_config.json", temperature=0.6, top_p=0.9, do_sample=True)
    train_sft(write_jsonl(tmp_path / "x.jsonl", shown("Eight.") * 4), SftSpec(model=str(base)), tmp_path / "out")
    kept = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert (kept["temperature"], kept["top_p"], kept["do_sample"], kept["eos_token_id"]) == (0.6, 0.9, True, [2, EOT])


def test_end_tokens_that_are_declared_already_are_left_as_they_are(model, tmp_path, write_jsonl):
    folder = model(CHATML)
    before = (folder / "generation_config.json").read_text()
    train_sft(write_jsonl(tmp_path / "x.jsonl", shown("Eight.") * 4), SftSpec(model=str(folder)), tmp_path / "out")
    assert (tmp_path / "out/generation_config.json").read_text() == before


def test_a_model_whose_template_ends_turns_with_an_undeclared_token_stops_there_and_says_so(base, prefdata, tmp_path):
    """Sampling from the base model itself: responses that were never to end would all be truncated."""
    from prefdata.engines.hf.generator import TransformersGenerator

    engine = TransformersGenerator(identify(str(base), "causal-lm"), device="cpu")
    assert engine.chat.end_ids == (2, EOT)
    assert engine.notes == (
        f"Responses also end at <eot>: the chat template ends turns with it, and the configs of {base} do not name it.",
    )
    (tmp_path / "p.jsonl").write_text('{"prompt": "hi"}\n')
    prefdata("ingest", tmp_path / "run", tmp_path / "p.jsonl")
    code, out, _ = prefdata("sample", tmp_path / "run", "--model", base, "-n", "2", "--max-tokens", "4")
    assert code == 0
    assert "Responses also end at <eot>" in out


# --- the template -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", ["sft", "rm", "dpo"])
def test_the_variables_that_were_trained_are_those_of_the_folder(model, tmp_path, write_jsonl, trainer):
    """Whoever renders with the folder's template, prefdata or not, renders what was trained."""
    folder, out = model(THINKING), tmp_path / "out"
    train, spec, rows = {
        "sft": (train_sft, SftSpec, shown("Eight.")),
        "rm": (train_rm, RmSpec, chats(("Eight.", "Six."))),
        "dpo": (train_dpo, DpoSpec, chats(("Eight.", "Six."))),
    }[trainer]
    settings = spec(model=str(folder), chat_template_arg=("enable_thinking=false",))
    train(write_jsonl(tmp_path / "x.jsonl", rows * 4), settings, out)
    user, tokenizer = [{"role": "user", "content": "a"}], AutoTokenizer.from_pretrained(out)
    asked = tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True)
    assert asked.endswith("<think>\n\n</think>\n\n")
    assert Chat.load(out).text(user, answer_next=True) == asked
    assert not Chat.load(folder).text(user, answer_next=True).endswith("</think>\n\n")


def test_a_template_of_ones_own_is_trained_and_saved(model, tmp_path, write_jsonl):
    """The way out where the model's own template drops reasoning: data in, data trained, and sampled as trained."""
    folder, reply = model(REASONING), "Spiders have\n</think>\n\nEight."
    (tmp_path / "kept.jinja").write_text(REASONING_KEPT)
    data = write_jsonl(tmp_path / "x.jsonl", shown(reply) * 4)
    with pytest.raises(BadRows, match=r"leaves out a part of the response: 'Spiders have\\n</think>'"):
        train_sft(data, SftSpec(model=str(folder)), tmp_path / "out")
    spec = SftSpec(model=str(folder), chat_template=str(tmp_path / "kept.jinja"))
    train_sft(data, spec, tmp_path / "out")
    chat = Chat.load(tmp_path / "out")
    text, prompt, _ = chat.answered([{"role": "user", "content": "How many?"}], reply)
    assert text == f"<bos><|U|>How many?<|A|><think>\n{reply}<eos>"
    assert chat.tokenizer.decode(prompt).endswith("<|A|><think>\n")


def test_one_of_several_named_templates_is_trained_and_saved_alone(model, tmp_path, write_jsonl):
    folder = model({"rag": CHATML, "tool_use": LLAMA_3})
    data = write_jsonl(tmp_path / "x.jsonl", shown("Eight.") * 4)
    train_sft(data, SftSpec(model=str(folder), chat_template="rag"), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == CHATML


def test_another_template_is_another_training(model, tmp_path, write_jsonl, prefdata):
    folder, data = model(THINKING), write_jsonl(tmp_path / "x.jsonl", shown("Eight.") * 4)
    command = ("train", "sft", data, "--model", folder, "--out", tmp_path / "out")
    assert prefdata(*command)[0] == 0
    code, _, err = prefdata(*command, "--chat-template-arg", "enable_thinking=false")
    assert (code, "chat_template_arg" in err) == (2, True)
    code, _, err = prefdata(*command, "--chat-template-arg", "thinking=false", "--replace")
    assert (code, "It reads enable_thinking." in err) == (2, True)


# --- what the template does to a response -----------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", ["sft", "rm", "dpo"])
def test_a_lost_response_is_an_error_with_its_row_or_dropped_and_counted(model, tmp_path, write_jsonl, trainer):
    """R1's template cuts the reasoning: two sides that differ in it alone would be trained as one."""
    kept, lost = "Eight legs.", "It is a spider.\n</think>\n\nEight legs."
    train, spec, rows = {
        "sft": (train_sft, SftSpec, shown(kept, lost, kept)),
        "rm": (train_rm, RmSpec, chats((kept, "Six."), (kept, lost), ("Seven.", kept))),
        "dpo": (train_dpo, DpoSpec, chats((kept, "Six."), (kept, lost), ("Seven.", kept))),
    }[trainer]
    # In this template nothing opens a sampled response: see the next test for one that does.
    folder = model(
        REASONING.replace("{% if add_generation_prompt %}<|A|><think>\n", "{% if add_generation_prompt %}<|A|>")
    )
    data = write_jsonl(tmp_path / "x.jsonl", rows)
    with pytest.raises(BadRows, match=r"1 bad row\.(.|\n)*x\.jsonl:2: .* leaves out .*'It is a spider\.\\n</think>'"):
        train(data, spec(model=str(folder)), tmp_path / "out")
    done = train(data, spec(model=str(folder), on_bad_rows="drop"), tmp_path / "out")
    assert (done.report.rows_in, done.report.rows_out) == (3, 2)
    assert done.report.dropped == {"changed_by_template": 1}


@pytest.mark.parametrize("trainer", ["sft", "dpo"])
def test_a_policy_is_trained_behind_the_prompt_that_it_is_sampled_with(model, tmp_path, write_jsonl, trainer):
    train, spec, rows = {
        "sft": (train_sft, SftSpec, shown("Eight.")),
        "dpo": (train_dpo, DpoSpec, chats(("Eight.", "Six."))),
    }[trainer]
    data, folder = write_jsonl(tmp_path / "x.jsonl", rows), model(REASONING)
    with pytest.raises(BadRows, match="opens a response with '<think>' when it is sampled"):
        train(data, spec(model=str(folder)), tmp_path / "out")
    train_rm(write_jsonl(tmp_path / "y.jsonl", chats(("a", "b"))), RmSpec(model=str(folder)), tmp_path / "rm")


@pytest.mark.parametrize("trainer", ["rm", "dpo"])
def test_sides_that_differ_in_white_space_alone_are_dropped(model, tmp_path, write_jsonl, trainer):
    train, spec = {"rm": (train_rm, RmSpec), "dpo": (train_dpo, DpoSpec)}[trainer]
    data = write_jsonl(tmp_path / "x.jsonl", chats(("Maybe.", "Maybe. "), (" Yes.", "No."), ("Yes.", "No.")))
    report = train(data, spec(model=str(model(LLAMA_3))), tmp_path / "out").report
    assert (report.rows_out, report.dropped) == (2, {"same_text": 1})
    assert report.figures["whitespace_changed_by_template"] == 1


def test_rows_that_cannot_be_read_are_dropped_and_counted_too(model, tmp_path, write_jsonl):
    rows = [*shown("Eight."), {"messages": "no list"}, {"messages": []}, *shown("half \ud83c")]
    data = tmp_path / "x.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    folder = str(model(CHATML))
    with pytest.raises(BadRows, match="3 bad rows"):
        train_sft(data, SftSpec(model=folder), tmp_path / "out")
    report = train_sft(data, SftSpec(model=folder, on_bad_rows="drop"), tmp_path / "out").report
    assert (report.rows_in, report.rows_out, report.dropped) == (5, 2, {"no_prompt": 2, "broken": 1})
    assert report.figures["lone_surrogates"] == 1


def test_half_a_surrogate_is_replaced_and_counted(model, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "q", "chosen": "half \\ud83c", "rejected": "b"}\n')
    for template in (CHATML, None):
        report = train_dpo(tmp_path / "x.jsonl", DpoSpec(model=str(model(template))), tmp_path / "out").report
        assert (report.rows_out, report.figures["lone_surrogates"]) == (1, 1)
        shutil.rmtree(tmp_path / "model")
        shutil.rmtree(tmp_path / "out")


def test_marks_that_leave_a_response_out_are_named(model, tmp_path, write_jsonl):
    """{% generation %} around the header alone would train the header."""
    template = CHATML.replace("{{ m['role'] }}", "{% generation %}{{ m['role'] }}{% endgeneration %}")
    data = write_jsonl(tmp_path / "x.jsonl", shown("Eight."))
    with pytest.raises(BadRows, match=r"in its generation blocks, leaves out a part of the response: 'Eight\.'"):
        train_sft(data, SftSpec(model=str(model(template))), tmp_path / "out")


# --- plain text -------------------------------------------------------------------------------------------------------

PLAIN = [
    {"prompt": f"Q{i}: ", "chosen": "yes " * (i % 3 + 1), "rejected": "no " * (i % 2 + 1), "split": split}
    for i, split in enumerate(["train"] * 6 + ["test"] * 4)
]  # fmt: skip


@pytest.mark.parametrize("template", [CHATML, None])
@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
def test_a_reward_model_of_plain_texts_is_evaluated_as_it_was_trained(
    make_policy, tmp_path, write_jsonl, template, pad
):
    """The margin of the held-out pairs in training is that of eval: the same ids, the score read at the end token."""
    data, out = write_jsonl(tmp_path / "x.jsonl", PLAIN), tmp_path / "rm"
    folder = make_policy(tmp_path / "model", tokenizer={"chat_template": template, "pad_token": pad}, pad_token_id=None)
    report = train_rm(data, RmSpec(model=str(folder), lr=1e-3, epochs=3), out).report
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    scorer = RewardModel(identify(str(out), "reward-model"), device="cpu")
    pairs = [pair for pair, row in zip(from_data(data), PLAIN, strict=True) if row["split"] == "test"]
    scores = score_pairs(scorer, pairs)
    margins = [scores[pair.chosen.key] - scores[pair.rejected.key] for pair in pairs]
    assert np.mean(margins) == pytest.approx(last["eval/rewards/margins"], abs=1e-5)
    assert ("note" in report.figures) == (template is not None)
    assert AutoTokenizer.from_pretrained(out).chat_template is None


def test_a_text_format_is_closed_by_the_end_token_that_was_trained(model, tmp_path, write_jsonl, make_reward_model):
    """As it is written for a model of others; a model that prefdata trained on plain text says how that ended."""
    data, out = write_jsonl(tmp_path / "x.jsonl", PLAIN), tmp_path / "rm"
    train_rm(data, RmSpec(model=str(model(None))), out)
    assert json.loads((out / "config.json").read_text())["prefdata"] == {"plain_text_end": "<eos>"}
    (tmp_path / "f.txt").write_text("{prompt}{response}")
    others = make_reward_model(tmp_path / "others", tokenizer={"chat_template": None})
    for folder, end in ((out, [2]), (others, [])):
        texts = RewardModel(identify(str(folder), "reward-model"), device="cpu", text_format=tmp_path / "f.txt").texts
        text = texts.text([{"role": "user", "content": "a"}], "b")
        assert texts.encode([text]) == [[1, 68, 69, *end]]


def test_the_record_of_plain_texts_ends_with_a_training_on_conversations(model, tmp_path, write_jsonl):
    folder = model(CHATML)
    config = json.loads((folder / "config.json").read_text()) | {"prefdata": {"plain_text_end": "<eos>"}}
    (folder / "config.json").write_text(json.dumps(config))
    train_sft(write_jsonl(tmp_path / "x.jsonl", shown("Eight.")), SftSpec(model=str(folder)), tmp_path / "out")
    assert "prefdata" not in json.loads((tmp_path / "out/config.json").read_text())


def test_a_policy_of_plain_texts_is_scored_as_it_was_trained(model, tmp_path):
    """ln p by the trainer's tokens and by the scorer's, end token included."""
    folder = model(None)
    row = {"prompt": [{"role": "user", "content": "Q: "}], "chosen": assistant("yes"), "rejected": assistant("no")}
    (example,) = Encoder(Chat.load(folder)).encode(parse([Row("x", 1, "train", row)], "preferences", "x")).examples
    import torch

    from prefdata.scorers.protocol import ScoringItem

    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([[*example.prompt, *example.responses[0]]])
    with torch.inference_mode():
        logps = net(ids).logits[0].double().log_softmax(-1)
    expected = sum(float(logps[place - 1, ids[0, place]]) for place in range(len(example.prompt), ids.shape[1]))
    (found,) = MeanLogprob(identify(str(folder), "causal-lm"), device="cpu").score(
        [ScoringItem("k", tuple(row["prompt"]), "yes", False)]
    )
    assert found.details == {"sum": pytest.approx(expected, abs=1e-5), "tokens": 4}


def test_plain_texts_and_a_template_contradict_each_other(model, tmp_path, write_jsonl):
    data = write_jsonl(tmp_path / "x.jsonl", PLAIN)
    spec = RmSpec(model=str(model(THINKING)), chat_template_arg=("enable_thinking=false",))
    with pytest.raises(UsageError, match="holds plain texts, which no chat template renders"):
        train_rm(data, spec, tmp_path / "out")


def test_texts_among_conversations_are_counted_and_the_template_stays(model, tmp_path, write_jsonl):
    rows = [*chats(("Eight.", "Six.")), *PLAIN[:2]]
    report = train_dpo(
        write_jsonl(tmp_path / "x.jsonl", rows), DpoSpec(model=str(model(CHATML))), tmp_path / "out"
    ).report
    assert report.figures["plain_texts"] == 2
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == CHATML


def test_nothing_left_to_train_on_says_why(model, tmp_path, write_jsonl):
    """What the reader left out is named as well as what the tokeniser did."""
    rows = chats(("Six.", "Eight."), ("Eight.", "Six."), ("a", "a"))
    with pytest.raises(UsageError, match=r"3 rows, same_text 1, contradiction 2\)"):
        train_dpo(write_jsonl(tmp_path / "x.jsonl", rows), DpoSpec(model=str(model(CHATML))), tmp_path / "out")
