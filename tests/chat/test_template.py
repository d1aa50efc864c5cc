"""Which chat template is used, what it reads, and what it may not drop."""

from __future__ import annotations

from typing import Any

import pytest
from families import GEMMA, LLAMA_3, MISTRAL, THINKING
from transformers import AutoTokenizer

from prefdata.chat.encoder import Chat
from prefdata.chat.template import TemplateRefusal, template_identity
from prefdata.errors import InputError, ModelError, UsageError
from prefdata.specs.chat import ChatSpec, TemplateChoice

USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOLS = '[{"type": "function", "function": {"name": "f", "parameters": {}}}]'


@pytest.fixture
def tokenizer(tiny_policy) -> Any:
    return AutoTokenizer.from_pretrained(tiny_policy)


def chat(tokenizer: Any, named: str | None = None, **variables: Any) -> Chat:
    return Chat(tokenizer, name="m", choice=TemplateChoice(named, variables))


def text(one: Chat, *messages: Any, tools: str | None = None) -> str:
    return one.text(messages or [USER], tools, answer_next=True)


# --- which template ---------------------------------------------------------------------------------------------------


def test_a_template_of_ones_own_is_a_file(tokenizer, tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text("own {{ messages[-1]['content'] }}<eot>")
    one = chat(tokenizer, str(file))
    assert (text(one), one.turn_end) == ("own hi<eot>", 3)
    assert one.template_hash != chat(tokenizer).template_hash


@pytest.fixture
def named(tokenizer) -> Any:
    tokenizer.chat_template = {
        "rag": "rag {{ messages[0]['content'] }}",
        "tool_use": "{{ tools }} {{ messages[0].content }}",
    }
    return tokenizer


def test_named_templates_without_a_default_are_named_in_the_error(named):
    with pytest.raises(ModelError, match=r"m has several chat templates and none named default: rag, tool_use\. Choos"):
        chat(named)
    assert text(chat(named, "rag")) == "rag hi"
    assert Chat(named, name="m", raw=True).template is None


def test_the_default_of_several_is_used_and_that_for_tools_with_tools(named):
    named.chat_template = {**named.chat_template, "default": "plain {{ messages[0]['content'] }}"}
    assert text(chat(named)) == "plain hi"
    assert text(chat(named), tools=TOOLS).startswith("[{")
    assert chat(named).template_hash != chat(named, "default").template_hash  # which has no template for tools
    with pytest.raises(TemplateRefusal, match="no place for tools"):
        text(chat(named, "default"), tools=TOOLS)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("rga", '--chat-template rga: there is no such file, and m has rag, tool_use. Did you mean "rag"?'),
        ("no/such.jinja", "--chat-template no/such.jinja: there is no such file, and m has rag, tool_use."),
    ],
)
def test_an_unknown_template_lists_those_that_there_are(named, given, says):
    with pytest.raises(UsageError) as caught:
        chat(named, given)
    assert str(caught.value).strip() == says


def test_a_name_that_is_a_file_too_is_not_guessed(named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rag").write_text("file")
    with pytest.raises(UsageError, match="both a file and a template of m"):
        chat(named, "rag")
    assert text(chat(named, "./rag"), SYSTEM | {"role": "assistant"}) == "file"


def test_a_model_without_a_template_can_be_given_one(tokenizer, tmp_path):
    tokenizer.chat_template = None
    (tmp_path / "t").write_text(LLAMA_3)
    assert text(chat(tokenizer, str(tmp_path / "t"))) == "<bos>[user]\n\nhi<eot>[assistant]\n\n"
    with pytest.raises(UsageError, match=r"m has no chat template that could read enable_thinking"):
        chat(tokenizer, enable_thinking=False)


def test_what_is_no_template_is_bad_input(tokenizer, tmp_path):
    (tmp_path / "t").write_text("{% if x %}\n{{ y }}")
    with pytest.raises(InputError, match=r"^the chat template of m is not Jinja: line 2: Unexpected end of template"):
        chat(tokenizer, str(tmp_path / "t"))
    (tmp_path / "t").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot read the chat template"):
        chat(tokenizer, str(tmp_path / "t"))


def test_raw_and_a_template_contradict_each_other(tokenizer):
    with pytest.raises(UsageError, match="uses no chat template"):
        Chat(tokenizer, name="m", raw=True, choice=TemplateChoice(variables={"x": 1}))


# --- its variables ----------------------------------------------------------------------------------------------------


def test_a_variable_reaches_the_template(tokenizer):
    tokenizer.chat_template = THINKING
    assert text(chat(tokenizer, enable_thinking=False)).endswith("assistant\n<think>\n\n</think>\n\n")
    assert text(chat(tokenizer)).endswith("assistant\n")


def test_a_variable_that_the_template_never_reads_names_those_it_does(tokenizer):
    tokenizer.chat_template = THINKING
    with pytest.raises(UsageError, match=r"never reads enable_thinkng\. It reads enable_thinking\.$"):
        chat(tokenizer, enable_thinkng=False)
    tokenizer.chat_template = LLAMA_3
    with pytest.raises(UsageError, match=r"never reads enable_thinking\. It reads no variable\.$"):
        chat(tokenizer, enable_thinking=False)


@pytest.mark.parametrize(
    "source",
    ["{% set v = v | default(1) %}{{ v }}", "{% if v is not defined %}{% set v = 1 %}{% endif %}{{ v }}", "{{ v }}"],
)
def test_only_what_a_template_asks_for_is_a_variable(tokenizer, source):
    """`w` is the template's own, though it is set in a branch only."""
    tokenizer.chat_template = "{% if messages %}{% set w = 2 %}{% endif %}{{ w }}" + source
    assert chat(tokenizer, v=5).template.render([USER]).text == "25"
    with pytest.raises(UsageError, match=r"never reads w\. It reads v\.$"):
        chat(tokenizer, w=5)


@pytest.mark.parametrize("name", ["messages", "bos_token", "add_generation_prompt", "tools"])
def test_what_prefdata_sets_itself_is_no_variable(tokenizer, name):
    with pytest.raises(UsageError, match=f"prefdata sets {name} itself"):
        chat(tokenizer, **{name: "x"})


def test_values_are_json_or_text():
    given = ("a=false", "b=3", 'c={"d": [null, "e"]}', "f=low", "g=", "h=a=b", "i=NaN", 'j="false"')
    choice = ChatSpec(chat_template_arg=given).template_choice
    assert choice.variables == {
        "a": False, "b": 3, "c": {"d": [None, "e"]}, "f": "low", "g": "", "h": "a=b", "i": "NaN", "j": "false",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "says"), [(("thinking",), "KEY=VALUE"), (("=1",), "KEY=VALUE"), (("a-b=1",), "KEY=VALUE"),
                        (("a=1", "a=2"), "gives a twice")]
)  # fmt: skip
def test_a_variable_that_cannot_be_read_is_wrong_usage(given, says):
    with pytest.raises(UsageError, match=says):
        ChatSpec.parse({"chat_template_arg": given}, where="sample")


@pytest.mark.parametrize(
    "value", [False, True, None, 3, -1.5, "low", 'it\'s "so"\n\\ é 🎬', [], [1, None], {"a": [True, {"b": None}]}]
)
def test_a_template_with_its_variables_written_into_it_renders_the_same(tokenizer, value):
    """What a model that was trained with variables is saved with: any tool then renders as training did."""
    source = (
        "{% macro m(x) %}{{ x | tojson }}{{ v | tojson }}{% endmacro %}{% for w in messages %}{{ m(v) }}{% endfor %}"
    )
    tokenizer.chat_template = source
    one = chat(tokenizer, v=value)
    tokenizer.chat_template = one.saved_templates
    turn = [{"role": "assistant", "content": "x"}]
    assert tokenizer.apply_chat_template(turn, tokenize=False) == one.text(turn, answer_next=False)
    assert chat(tokenizer, v="other").text(turn, answer_next=False) == '"other"' * 2
    assert chat(tokenizer).saved_templates == one.saved_templates


def test_variables_are_written_into_the_template_for_tools_too(named):
    named.chat_template = {"default": "{{ x }}{{ messages }}", "tool_use": "{{ x }}{{ tools }}", "rag": "rag"}
    saved = chat(named, x=1).saved_templates
    assert saved["rag"] == "rag"
    assert all(saved[name].startswith("{% if x is not defined %}") for name in ("default", "tool_use"))
    assert chat(named, "rag").saved_templates == "rag"
    assert chat(named).saved_templates == named.chat_template


def test_the_identity_is_of_what_is_rendered_and_not_of_paths_or_order(tmp_path):
    def identity(**given: Any) -> dict[str, Any]:
        return template_identity(ChatSpec(**given))

    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("x")
    (tmp_path / "c").write_text("y")
    one, two, three = (identity(chat_template=str(tmp_path / name)) for name in "abc")
    assert one == two != three
    assert identity(chat_template_arg=("b=1", "a=low")) == identity(chat_template_arg=('a="low"', "b= 1"))
    assert identity(chat_template_arg=("a=1",)) != identity(chat_template_arg=('a="1"',))
    assert identity() == {}


def test_the_hash_names_the_variables(tokenizer):
    tokenizer.chat_template = THINKING
    assert chat(tokenizer, enable_thinking=True).template_hash != chat(tokenizer).template_hash


# --- what it may not drop ---------------------------------------------------------------------------------------------


def test_a_message_that_the_template_drops_is_refused(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages if m['role'] != 'system' %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(TemplateRefusal, match="drops the system message 1"):
        text(chat(tokenizer), SYSTEM, USER)
    with pytest.raises(TemplateRefusal, match="drops the system message 1"):
        chat(tokenizer).conversation([SYSTEM, USER], "x")
    assert text(chat(tokenizer), {**SYSTEM, "content": ""}, USER) == "[user] hi"


@pytest.mark.parametrize("template", [MISTRAL, LLAMA_3])
def test_a_message_that_the_template_moves_or_trims_is_not_dropped(tokenizer, template):
    tokenizer.chat_template = template
    assert "Be brief." in text(chat(tokenizer), {**SYSTEM, "content": " Be brief. \n"}, USER)


def test_a_control_word_that_the_template_takes_out_is_no_dropped_message(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'].replace('/no_think', '') }}{% endfor %}"
    assert text(chat(tokenizer), {**USER, "content": "hi /no_think"}) == "hi "


def test_a_template_that_refuses_says_why_in_one_line(tokenizer):
    tokenizer.chat_template = GEMMA
    with pytest.raises(TemplateRefusal, match=r"refuses this conversation \(system, user\): no system role\."):
        text(chat(tokenizer), SYSTEM, USER)
    with pytest.raises(TemplateRefusal, match="the conversation is empty"):
        chat(tokenizer).prompt_ids([])


@pytest.mark.parametrize("source", ["{{ messages[7]['content'] }}", "{{ 1 / 0 }}", "{{ messages.pop() }}", "{{ x() }}"])
def test_a_template_that_breaks_is_a_refusal_and_no_crash(tokenizer, source):
    tokenizer.chat_template = source
    with pytest.raises(TemplateRefusal, match="refuses this conversation"):
        text(chat(tokenizer))
