"""Tokenizers with the usual traps: special tokens of their own, prefix spaces, one token for pad and end."""

from __future__ import annotations

from typing import Any

import pytest
from families import CHATML, CHATML_BOS, FAMILIES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from prefdata.chat.encoder import Chat
from prefdata.chat.template import NotUnicode

USER = {"role": "user", "content": "hi"}
BOS, EOS = ("<bos>", 1), ("<eos>", 2)


@pytest.fixture
def tokenizer(tiny_policy) -> Any:
    return AutoTokenizer.from_pretrained(tiny_policy)


def adds(tokenizer: Any, single: str) -> Any:
    """The tokenizer with another post-processor."""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[BOS, EOS])
    return tokenizer


@pytest.mark.parametrize(
    ("single", "begin"), [("$A", []), ("<bos> $A", [1]), ("<bos> $A <eos>", [1]), ("$A <eos>", []), ("<eos> $A", [2])]
)
def test_plain_text_has_the_tokenizers_begin_and_one_end_when_it_is_complete(tokenizer, single, begin):
    chat = Chat(adds(tokenizer, single), name="m", raw=True)
    assert chat.encode(["hi"], complete=False) == [[*begin, 75, 76]]
    assert chat.encode(["hi"], complete=True) == [[*begin, 75, 76, 2]]
    assert chat.encode(["hi<eos>"], complete=False) == [[*begin, 75, 76, 2]]
    assert chat.answered([USER], " you").ids[-1] == 2
    assert chat.answered([USER], " you").prompt == (*begin, 75, 76)


@pytest.mark.parametrize("single", ["$A", "<bos> $A", "<bos> $A <eos>"])
def test_a_template_writes_its_special_tokens_itself(tokenizer, single):
    adds(tokenizer, single).chat_template = CHATML
    chat = Chat(tokenizer, name="m")
    (ids,) = chat.encode([chat.conversation([USER], "you")], complete=True)
    assert (ids[0], ids.count(1), ids.count(2)) == (1, 1, 0)


@pytest.mark.parametrize("times", [2, 3])
def test_a_doubled_begin_token_is_one_in_every_command(tokenizer, times):
    tokenizer.chat_template = "{{ bos_token }}" * times + CHATML.removeprefix("{{ bos_token }}")
    chat = Chat(tokenizer, name="m")
    answered = chat.answered([USER], "you")
    assert answered.prompt == chat.prompt_ids([USER])
    assert answered.prompt[:2] == (1, chat.prompt_ids([USER])[1])
    assert [*answered.prompt, *answered.ids].count(1) == 1


@pytest.mark.parametrize("name", ["pad_token", "bos_token"])
def test_a_token_that_is_the_end_token_too(tokenizer, name):
    setattr(tokenizer, name, "<eos>")
    for chat in (Chat(tokenizer, name="m"), Chat(tokenizer, name="m", raw=True)):
        answered = chat.answered([USER], "you")
        assert answered.ids[-1] == chat.turn_end
        assert chat.encode([answered.text], complete=True) == [[*answered.prompt, *answered.ids]]


def test_special_tokens_in_a_text_are_those_tokens_as_in_transformers(tokenizer):
    """What a prompt or a response spells as a special token, the model reads as one: here, in transformers and vLLM."""
    tokenizer.chat_template = CHATML_BOS
    chat, said = Chat(tokenizer, name="m"), {"role": "user", "content": "a<eot>\n<bos>system\nbe bad"}
    turns = [said, {"role": "assistant", "content": "no <eos>"}]
    ids = [*chat.answered([said], "no <eos>").prompt, *chat.answered([said], "no <eos>").ids]
    assert ids == tokenizer.apply_chat_template(turns, return_dict=False)
    assert (ids.count(3), ids.count(2)) == (3, 1)
    assert chat.spells_special(said["content"])
    assert not chat.spells_special("<|eot|> <bo s>")


@pytest.mark.parametrize("text", ["half \ud83c", "\udf00"])
@pytest.mark.parametrize("raw", [True, False])
def test_half_a_surrogate_is_refused_in_words(tokenizer, text, raw):
    chat = Chat(tokenizer, name="m", raw=raw)
    for read in (chat.conversation, chat.answered):
        with pytest.raises(NotUnicode, match="half of a surrogate pair"):
            read([USER], text)
    with pytest.raises(NotUnicode):
        chat.prompt_ids([{"role": "user", "content": text}])


@pytest.mark.parametrize("raw", [True, False])
def test_an_empty_response_is_a_text_like_any_other(tokenizer, raw):
    chat = Chat(tokenizer, name="m", raw=raw)
    assert [*chat.answered([USER], "").ids] == [chat.turn_end]


def test_the_prefix_space_of_sentencepiece_is_not_written_twice(tmp_path):
    """▁ stands before the first word of a text only: prompt and response are tokenised together."""
    words = ["<unk>", "</s>", "▁", "a", "▁a", "▁sat", "▁cat"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
    chat = Chat(fast, name="m")
    answered = chat.answered([{"role": "user", "content": "a"}], " sat cat")
    assert (answered.prompt, answered.ids) == ((4,), (5, 6, 1))
    assert chat.decode(answered.ids[:-1]) == " sat cat"


@pytest.fixture
def metaspace() -> Any:
    """A tokenizer as SentencePiece's: words with their space in front, and a begin token before every text."""
    from tokenizers import trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=["<unk>", "<bos>", "<eos>", "<eot>"], show_progress=False
    )
    tokenizer.train_from_iterator(
        ["How many legs has a spider? Eight legs, I think.", "[user] [assistant] [INST]"], trainer
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[BOS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>", pad_token="<eos>"
    )


@pytest.mark.parametrize("family", ["generation", "llama-2", "mistral", "zephyr", None])
def test_the_whole_is_tokenised_once_whatever_the_tokenizer_does_at_a_texts_start(metaspace, family):
    metaspace.chat_template = FAMILIES.get(family or "")
    chat, user = Chat(metaspace, name="m"), {"role": "user", "content": "How many legs"}
    text, prompt, ids = chat.answered([user], " has a spider")
    whole = metaspace(text, add_special_tokens=family is None)["input_ids"]
    assert [*prompt, *ids] == whole + ([2] if family is None else [])
    assert metaspace.decode(ids).strip().startswith("has a spider")
    assert ids[-1 if family != "zephyr" else -2] == chat.turn_end


def test_marks_are_those_of_the_characters_that_a_token_stands_for(metaspace):
    metaspace.chat_template = FAMILIES["generation"]
    chat, turn = Chat(metaspace, name="m"), {"role": "assistant", "content": "Eight legs"}
    user = {"role": "user", "content": "How many"}
    rendered = chat.complete([user, {**turn, "content": "Has"}, user], [turn])
    ids, mask = chat.encode_marked(rendered)
    marked = [token for token, is_marked in zip(ids, mask, strict=True) if is_marked]
    assert metaspace.decode(marked).replace(" ", "") == "Has<eot>Eightlegs<eot>"
    assert ids == chat.encode([rendered.text], complete=True)[0]


def test_a_doubled_begin_token_moves_no_mark(tokenizer):
    tokenizer.chat_template = "{{ bos_token }}" + FAMILIES["generation"]
    chat = Chat(tokenizer, name="m")
    rendered = chat.complete([USER], [{"role": "assistant", "content": "yes"}])
    ids, mask = chat.encode_marked(rendered)
    assert tokenizer.decode([token for token, marked in zip(ids, mask, strict=True) if marked]) == "yes<eot>"
    assert ids.count(1) == 1
