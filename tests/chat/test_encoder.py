"""Conversations to ids once, with one BOS, and ids back to text."""

from __future__ import annotations

import json
import shutil

import pytest

from prefdata.chat.encoder import Chat
from prefdata.chat.template import TemplateRefusal
from prefdata.errors import ModelError

USER = {"role": "user", "content": "hi"}


@pytest.fixture
def chat(tiny_policy):
    return Chat.load(tiny_policy, name="tiny")


@pytest.fixture
def edited(tiny_policy, tmp_path):
    """`edited(template=…)`: the tiny tokenizer with another chat template, or none."""

    def make(template: str | None) -> Chat:
        from transformers import AutoTokenizer

        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        return Chat.load(folder, name="tiny")

    return make


@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [{"role": "system", "content": "Be brief."}, USER],
        [USER, {"role": "assistant", "content": "yes?"}, {"role": "user", "content": "näher 🎬\n"}],
    ],
)
def test_the_ids_are_the_templates_own(chat, messages):
    own = chat.tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert list(chat.prompt_ids(messages)) == own
    text = "<bos>" + "".join(f"[{m['role']}] {m['content']}<eot>" for m in messages) + "[assistant] "
    assert chat.text(messages, None, answer_next=True) == text


def test_one_bos_where_tokenising_the_text_again_would_give_two(chat):
    text = chat.text([USER], None, answer_next=True)
    assert chat.tokenizer.encode(text)[:2] == [1, 1]
    assert list(chat.prompt_ids([USER])).count(1) == 1


def test_a_template_that_writes_two_bos_is_mended(edited):
    chat = edited("{{ bos_token }}{{ bos_token }}{{ messages[0]['content'] }}")
    assert chat.prompt_ids([USER]) == (1, *chat.tokenizer.encode("hi", add_special_tokens=False))


def test_plain_text_is_tokenised_as_the_tokenizer_does(edited, tiny_policy):
    for chat in (edited(None), Chat.load(tiny_policy, raw=True)):
        assert chat.template is None
        assert list(chat.prompt_ids([USER])) == chat.tokenizer.encode("hi") == [1, 75, 76]
        assert chat.conversation([USER], " there") == "hi there"


@pytest.mark.parametrize(
    "messages", [[{"role": "system", "content": "x"}, USER], [{"role": "assistant", "content": "x"}], []]
)
def test_without_a_template_only_one_user_message_is_continued(edited, tiny_policy, messages):
    with pytest.raises(TemplateRefusal, match="tiny has no chat template: only the text of a single user message"):
        edited(None).prompt_ids(messages)
    with pytest.raises(TemplateRefusal, match="with --raw only the text of a single user message"):
        Chat.load(tiny_policy, raw=True).prompt_ids(messages)


def test_a_refusal_names_the_roles_and_the_templates_words(chat):
    with pytest.raises(TemplateRefusal) as caught:
        chat.prompt_ids([USER, {"role": "critic", "content": "no"}])
    assert str(caught.value).startswith(
        "the chat template of tiny refuses this conversation (user, critic): unknown role critic."
    )
    assert caught.value.exit_code == 2


def test_tools_reach_the_template(chat):
    tools = json.dumps([{"type": "function", "function": {"name": "f", "parameters": {}}}])
    text = chat.text([USER], tools, answer_next=True)
    assert text.startswith("<bos>[tools] [{")
    assert '"name": "f"' in text


def test_tools_that_a_template_would_drop_are_refused(edited):
    with pytest.raises(TemplateRefusal, match="no place for tools"):
        edited("{{ messages[0]['content'] }}").prompt_ids([USER], "[]")


def test_a_conversation_has_no_open_turn(chat):
    assert chat.conversation([USER], "yes") == "<bos>[user] hi<eot>[assistant] yes<eot>"
    (ids,) = chat.encode(["<bos>[user] hi<eot>"], complete=True)
    assert (ids[0], ids.count(1), ids[-1]) == (1, 1, 3)


def test_decoding(chat):
    hello = chat.tokenizer.encode(" héllo ,  x .", add_special_tokens=False)
    assert chat.decode([*hello, 3]) == " héllo ,  x ."
    assert chat.decode([]) == ""
    assert chat.decode([2]) == ""


def test_broken_utf8_becomes_the_replacement_character(chat):
    film = chat.tokenizer.encode("🎬", add_special_tokens=False)
    assert len(film) == 4
    for cut in (1, 2, 3):
        assert set(chat.decode(film[:cut])) == {"\ufffd"}
    assert chat.decode([*film[:2], *film]).endswith("🎬")
    assert chat.decode(film[3:]) == "\ufffd"


def test_plain_text_keeps_the_space_that_the_answer_begins_with(tmp_path):
    """SentencePiece tokenizers drop a text's first space; prompt and answer together must not lose theirs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(["<unk>", "▁", "a", "▁a", "▁sat", "▁cat"])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(tmp_path)
    chat = Chat.load(tmp_path)
    assert chat.tokenizer.decode([4, 5]) == "sat cat"
    assert chat.decode([4, 5]) == " sat cat"


def test_a_tokenizer_that_closes_texts_leaves_a_prompt_open(tiny_policy):
    from tokenizers import processors
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    chat = Chat(tokenizer, name="closing", raw=True)
    assert tokenizer.encode("hi") == [1, 75, 76, 2]
    assert chat.prompt_ids([USER]) == (1, 75, 76)
    assert chat.encode(["hi"], complete=True) == [[1, 75, 76, 2]]
    assert chat.encode(["hi<eos>"], complete=False) == [[1, 75, 76, 2]]  # the user's own is no closing one


def test_the_ends_are_all_that_tokenizer_configs_and_template_name(tiny_policy, tmp_path, edit_json):
    folder = shutil.copytree(tiny_policy, tmp_path / "m")
    edit_json(folder / "config.json", eos_token_id=7)
    edit_json(folder / "generation_config.json", eos_token_id=[2, 9])
    chat = Chat.load(folder, name="m")
    assert (chat.end_ids, chat.turn_end) == ((2, 3, 7, 9), 3)
    assert chat.notes == ("Responses also end at <eot>: the chat template ends turns with it, and the configs of m do "
                          "not name it.",)  # fmt: skip
    assert Chat.load(folder, raw=True).end_ids == (2, 7, 9)
    assert Chat.load(tiny_policy).notes == ()


def test_the_hash_names_template_and_tokenizer(tiny_policy, tmp_path):
    folder = shutil.copytree(tiny_policy, tmp_path / "m")
    first = Chat.load(folder).template_hash
    assert first == Chat.load(tiny_policy).template_hash
    assert Chat.load(folder, raw=True).template_hash != first
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    second = Chat.load(folder).template_hash
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + "\n")
    assert len({first, second, Chat.load(folder).template_hash}) == 3


def test_a_broken_tokenizer_is_a_model_error(tiny_policy, tmp_path):
    folder = shutil.copytree(tiny_policy, tmp_path / "m")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot load the tokenizer"):
        Chat.load(folder)
