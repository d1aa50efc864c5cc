"""--chat-template and --chat-template-arg on the command line: what is rendered, and what it makes another result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from families import CHATML, LLAMA_3, REASONING, THINKING

SPIDER = {"prompt": "How many legs has a spider?"}
KEPT, LOST = "Eight legs.", "It is an arachnid, so\n</think>\n\nEight legs."


@pytest.fixture
def run(tmp_path: Path, write: Any, prefdata: Any) -> Path:
    """A run with one prompt and two responses to it."""
    code, _, err = prefdata(
        "ingest",
        tmp_path / "run",
        write({**SPIDER, "responses": [KEPT, LOST]}),
        "--as",
        "candidates",
        "--source",
        "given",
    )
    assert code == 0, err
    return tmp_path / "run"


@pytest.fixture
def policy(make_policy: Any, tmp_path: Path) -> Any:
    """`policy(template)`: a causal LM with that chat template."""
    return lambda template: make_policy(tmp_path / "policy", tokenizer={"chat_template": template})


@pytest.fixture
def reward(make_reward_model: Any, tmp_path: Path) -> Any:
    """`reward(template)`: a reward model with that chat template."""
    return lambda template: make_reward_model(tmp_path / "reward", tokenizer={"chat_template": template})


def rows(prefdata: Any, run: Path, query: str) -> list[dict[str, Any]]:
    code, out, err = prefdata("sql", run, query, "--format", "json")
    assert code == 0, err
    return json.loads(out)


# --- sample -----------------------------------------------------------------------------------------------------------


def test_sampling_renders_with_the_template_and_its_variables(run, policy, prefdata, tmp_path):
    model = policy(THINKING)
    (tmp_path / "own.jinja").write_text("{{ bos_token }}own {{ messages[-1]['content'] }}")

    def rendered(*flags: Any) -> str:
        code, out, err = prefdata("sample", run, "--model", model, "--dry-run", *flags)
        assert code == 0, err
        return json.loads(out)["rendered"] if out.startswith("{") else out

    assert "</think>" not in rendered()
    assert "<think>" in rendered("--chat-template-arg", "enable_thinking=false")
    assert "own How many" in rendered("--chat-template", tmp_path / "own.jinja")


def test_template_and_variables_are_part_of_what_a_sampler_is(run, policy, prefdata, tmp_path):
    model, own = policy(THINKING), tmp_path / "own.jinja"
    own.write_text(LLAMA_3)
    command = ("sample", run, "--model", model, "-n", "1", "--max-tokens", "2", "--name")
    flags: dict[str, tuple[Any, ...]] = {
        "plain": (),
        "off": ("--chat-template-arg", "enable_thinking=false"),
        "on": ("--chat-template-arg", "enable_thinking=true"),
        "own": ("--chat-template", own),
    }
    for name, given in flags.items():
        assert prefdata(*command, name, *given)[0] == 0
    found = rows(prefdata, run, "select candidate_id from candidates where sampler in ('plain', 'off', 'on', 'own')")
    assert len({row["candidate_id"] for row in found}) == 4
    code, _, err = prefdata(*command, "off", "--chat-template-arg", "enable_thinking=0")
    assert (code, "chat_template_arg" in err) == (2, True)
    own.write_text(CHATML)  # the same file with another content is another template
    assert prefdata(*command, "own", "--chat-template", own)[0] == 2
    assert prefdata(*command, "off", "--chat-template-arg", "enable_thinking= false")[0] == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--chat-template", "none.jinja"), "there is no such file, and MODEL has default"),
        (("--chat-template-arg", "thinking=no"), "never reads thinking. It reads enable_thinking."),
        (("--chat-template-arg", "thinking"), "write it as KEY=VALUE"),
        (("--chat-template-arg", "a=1", "--raw"), "--raw uses no chat template"),
        (("--chat-template-arg", "a=1", "--engine", "openai"), "give the model's --tokenizer"),
    ],
)
def test_a_template_that_cannot_be_used_is_wrong_usage_and_writes_nothing(run, policy, prefdata, flags, says):
    model = policy(THINKING)
    code, _, err = prefdata("sample", run, "--model", model, "-n", "1", "--name", "x", *flags)
    assert (code, says.replace("MODEL", str(model)) in err) == (2, True), err
    assert err.count("\n") == 1
    assert not (run / "candidates/sampler=x").exists()


def test_named_templates_without_a_default_ask_for_a_name(run, policy, prefdata):
    model = policy({"rag": CHATML, "tool_use": LLAMA_3})
    command = ("sample", run, "--model", model, "-n", "1", "--max-tokens", "2", "--name", "x")
    code, _, err = prefdata(*command)
    assert (code, "several chat templates and none named default: rag, tool_use. Choose one with" in err) == (2, True)
    assert prefdata(*command, "--chat-template", "rag")[0] == 0


def test_a_prompt_whose_system_message_the_template_drops_is_a_row_that_says_so(run, policy, prefdata, write):
    model = policy("{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}<eot>{% endfor %}")
    prefdata("ingest", run, write(SPIDER, name="more.jsonl"), "--system", "Be brief.")
    code, out, _ = prefdata("sample", run, "--model", model, "-n", "1", "--max-tokens", "2", "--name", "x")
    assert (code, "rejected" in out) == (0, True), out
    (row,) = rows(prefdata, run, "select detail from candidates where sampler = 'x' and status <> 'ok'")
    assert "drops the system message 1" in row["detail"]


# --- rank -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["reward-model", "mean-logprob", "implicit"])
def test_a_response_that_the_template_changes_has_no_score_and_a_reason(run, policy, reward, prefdata, kind):
    template = REASONING.replace("<think>\n", "")
    model = reward(template) if kind == "reward-model" else policy(template)
    more = ("--reference", model) if kind == "implicit" else ()
    code, out, err = prefdata("rank", run, f"--{kind}", model, *more, "--name", "x")
    assert (code, "changed by template" in out) == (0, True), err
    found = {row["text"]: row for row in rows(prefdata, run, "select text, score, reason from answers")}
    assert found[KEPT]["score"] is not None
    assert (found[LOST]["score"], found[LOST]["reason"]) == (None, "changed_by_template")


def test_ranking_reads_by_the_template_that_was_asked_for(run, reward, prefdata, tmp_path):
    model = reward(REASONING)
    (tmp_path / "kept.jinja").write_text(CHATML)
    assert prefdata("rank", run, "--reward-model", model, "--name", "own")[0] == 0
    command = ("rank", run, "--reward-model", model, "--name", "kept")
    code, out, err = prefdata(*command, "--chat-template", tmp_path / "kept.jinja")
    assert (code, "changed by template" in out) == (0, False), err
    found = rows(prefdata, run, "select score from scores where scorer = 'kept'")
    assert len({row["score"] for row in found}) == 2
    code, _, err = prefdata(*command)
    assert (code, "chat_template" in err) == (2, True)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--reward-model", "MODEL", "--text-format", "FILE"), "--text-format uses no chat template"),
        (("--similarity", "exact"), "goes with --similarity states, and changes nothing here"),
        (("--function", "f.py:f"), "--chat-template-arg goes with --reward-model or"),
        (("--reward-model", "MODEL"), "never reads enable_thinking. It reads no variable."),
    ],
)
def test_a_variable_without_a_use_is_wrong_usage(run, reward, prefdata, tmp_path, flags, says):
    (tmp_path / "FILE").write_text("{prompt}{response}")
    names = {"MODEL": reward(CHATML), "FILE": tmp_path / "FILE"}
    given = [names.get(flag, flag) for flag in flags]
    code, _, err = prefdata("rank", run, *given, "--chat-template-arg", "enable_thinking=false", "--name", "x")
    assert (code, says in err) == (2, True), err


# --- check and eval ---------------------------------------------------------------------------------------------------


def test_check_and_eval_read_by_the_template_that_was_asked_for(make_reward_model, prefdata, write, tmp_path):
    model = make_reward_model(tmp_path / "m", tokenizer={"chat_template": REASONING}, max_position_embeddings=256)
    (tmp_path / "own.jinja").write_text(CHATML)
    own = ("--chat-template", tmp_path / "own.jinja")
    pairs = write({**SPIDER, "chosen": LOST, "rejected": KEPT}, {**SPIDER, "chosen": KEPT, "rejected": "Six."})
    check = ("check", "reward-model", model, "--engine", "transformers", "-f", "json", "--data", pairs)
    for given, texts in (((), "3 of 3"), (own, "4 of 4")):
        code, out, err = prefdata(*check, *given)
        assert code == 0, err
        seen = {row["check"]: row["seen"] for row in json.loads(out)}
        assert (seen["token ids"], seen["text as trained"]) == (f"{texts} as defined", f"{texts} the same")
    evaluate = ("eval", "reward-model", model, pairs, "--format", "json")
    unscored = [json.loads(prefdata(*evaluate, *given)[1])["accuracy"][0]["unscored"] for given in ((), own)]
    assert unscored == [1, 0]
    code, _, err = prefdata(*evaluate, "--chat-template-arg", "x=1")
    assert (code, "never reads x" in err) == (2, True)


def test_check_finds_another_tokenisation_than_the_templates(make_reward_model, tmp_path, monkeypatch):
    from prefdata.explore.reward_model_checks import check
    from prefdata.scorers.classifier.rendering import TextRenderer

    model = make_reward_model(tmp_path / "m", tokenizer={"chat_template": CHATML}, max_position_embeddings=256)
    real = TextRenderer.encode
    monkeypatch.setattr(TextRenderer, "encode", lambda self, texts: [[*ids, 2] for ids in real(self, texts)])
    failed = {one.check for one in check(str(model), engine="transformers", device="cpu") if one.passed is False}
    assert failed == {"token ids", "text as trained"}


def test_check_says_where_transformers_own_forward_reads_another_token(make_reward_model, tmp_path):
    """Pad and end token are one: transformers' forward takes the end token for padding, and reads the one before."""
    from prefdata.explore.reward_model_checks import check

    own = {"chat_template": CHATML.replace("<eot>\n", "<eos>"), "pad_token": "<eos>"}
    model = make_reward_model(tmp_path / "m", tokenizer=own, pad_token_id=2, max_position_embeddings=256)
    found = {one.check: one for one in check(str(model), engine="transformers", device="cpu")}
    assert found["score position"].verdict == "not checked"
    assert "its padding token is the end token, so that it reads the one before" in found["score position"].seen
    assert all(one.passed for name, one in found.items() if name in ("padding", "batch", "end token", "raw logit"))


# --- judges -----------------------------------------------------------------------------------------------------------


CUTTING = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'].split('</think>')[-1] }}<eot>{% endfor %}"
"""A template that cuts user turns too, with what a judge is shown of a response."""


@pytest.mark.parametrize("kind", ["pointwise", "judge"])
def test_a_judge_that_is_not_shown_a_whole_response_gives_no_score(run, policy, prefdata, kind):
    code, _, err = prefdata("rank", run, f"--{kind}", policy(CUTTING), "--name", "x")
    assert (code, "no candidate has a score" in err) == (1, True), err
    reasons = {row["reason"] for row in rows(prefdata, run, f"select reason from answers where text = '{LOST}'")}
    assert reasons == {"changed_by_template"}


def test_a_comparison_of_a_response_that_is_not_whole_is_no_verdict(run, policy, make_reward_model, prefdata, tmp_path):
    classifier = make_reward_model(tmp_path / "c", labels=2, tokenizer={"chat_template": CUTTING})
    for name, model in (("lm", policy(CUTTING)), ("classifier", classifier)):
        code, _, err = prefdata("rank", run, "--pairwise", model, "--name", name)
        assert (code, "leaves out a part of the response" in err) == (1, True), err
        found = rows(prefdata, run, f"select verdict, rationale from comparisons where judge = '{name}'")
        assert {row["verdict"] for row in found} == {"error"}
        assert all("leaves out a part of the response" in row["rationale"] for row in found)


# --- tools ------------------------------------------------------------------------------------------------------------

TOOLS = '[{"name": "legs_of"}]'


@pytest.fixture
def tool_run(tmp_path: Path, write: Any, prefdata: Any) -> Path:
    """A run whose prompt has tools."""
    file = write({**SPIDER, "tools": json.loads(TOOLS), "responses": [KEPT]}, name="tools.jsonl")
    code, _, err = prefdata("ingest", tmp_path / "tools", file, "--as", "candidates", "--source", "given")
    assert code == 0, err
    return tmp_path / "tools"


@pytest.mark.parametrize("kind", ["reward-model", "mean-logprob"])
def test_a_scorer_reads_the_tools_that_a_prompt_has(tool_run, policy, reward, prefdata, kind):
    """As sampling and training do: a prompt without its tools is another prompt."""
    from conftest import CHAT_TEMPLATE

    from prefdata.chat.encoder import Chat
    from prefdata.ids import text_hash

    model = (reward if kind == "reward-model" else policy)(CHAT_TEMPLATE)
    code, _, err = prefdata("rank", tool_run, f"--{kind}", model, "--name", "x")
    assert code == 0, err
    user = [{"role": "user", "content": SPIDER["prompt"]}]
    (row,) = rows(prefdata, tool_run, "select text_hash, score, reason from scores where scorer = 'x'")
    text = Chat.load(model).conversation(user, KEPT, TOOLS)
    assert '"name": "legs_of"' in text
    assert (row["reason"], row["text_hash"]) == (None, text_hash(text))


def test_tools_that_a_scorer_has_no_place_for_are_a_reason(tool_run, reward, prefdata, tmp_path):
    model = reward(CHATML)
    (tmp_path / "without.txt").write_text("{prompt} {response}")
    (tmp_path / "with.txt").write_text("{tools} {prompt} {response}")
    formats = {name: ("--text-format", tmp_path / f"{name}.txt") for name in ("with", "without")}
    for name, more in {"template": (), **formats}.items():
        code = prefdata("rank", tool_run, "--reward-model", model, "--name", name, *more)[0]
        assert code == (0 if name == "with" else 1)  # 1: nothing has a score
    found = {r["scorer"]: r["reason"] for r in rows(prefdata, tool_run, "select scorer, reason from scores")}
    assert found == {"template": "refused_by_template", "without": "refused_by_template", "with": None}


def test_training_on_tools_that_the_template_drops_is_an_error(policy, prefdata, write, tmp_path):
    data = write(
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": TOOLS}
    )
    code, _, err = prefdata("train", "sft", data, "--model", policy(CHATML), "--out", tmp_path / "out")
    assert (code, "has no place for tools" in err) == (2, True)
