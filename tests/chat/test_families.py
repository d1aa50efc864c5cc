"""The same token ids wherever a conversation is read, for the templates of many families."""

from __future__ import annotations

from typing import Any

import pytest
from families import FAMILIES, REASONING, THINKING
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdata.chat.encoder import Chat, shared_prefix
from prefdata.chat.template import ResponseChanged
from prefdata.models.files import identify
from prefdata.scorers.classifier.rendering import TextRenderer
from prefdata.scorers.protocol import ScoringItem
from prefdata.specs.chat import TemplateChoice
from prefdata.train.encode import Encoder
from prefdata.train.parsing import Row, parse

USER = {"role": "user", "content": "How many legs has a spider?"}
EARLIER = ({"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello!"}, USER)
ENDS = {"llama-2": 2, "mistral": 2, "zephyr": 2, "reasoning-kept": 2}
"""The token that ends a turn, where that is eos; elsewhere it is <eot>."""

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).map(lambda text: f"R{text}n")
"""Responses with any characters inside, and letters at both ends."""


@pytest.fixture(scope="module")
def tokenizer(tiny_policy) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_policy)


def chat_of(tokenizer: Any, family: str | None) -> Chat:
    tokenizer.chat_template = FAMILIES.get(family or "", family)
    return Chat(tokenizer, name=family or "plain")


def trained(chat: Chat, messages: Any, *responses: str) -> list[list[int]]:
    """The token ids that DPO trains on."""
    sides = [[{"role": "assistant", "content": text}] for text in responses]
    row = {"prompt": list(messages), "chosen": sides[0], "rejected": sides[1]}
    (example,) = Encoder(chat).encode(parse([Row("x", 1, "train", row)], "preferences", "x")).examples
    return [[*example.prompt.tolist(), *response.tolist()] for response in example.responses]


@pytest.mark.parametrize("family", [*FAMILIES, None])
@settings(max_examples=15, deadline=None)
@given(response=TEXTS, other=TEXTS)
def test_training_ranking_likelihood_and_sampling_read_the_same_ids(tokenizer, family, response, other):
    chat = chat_of(tokenizer, family)
    for messages in [(USER,), EARLIER] if family else [(USER,)]:
        text = chat.conversation(messages, response)
        (whole,) = chat.encode([text], complete=True)
        answered = chat.answered(messages, response)
        assert [*answered.prompt, *answered.ids] == whole
        assert answered.prompt == chat.prompt_ids(messages)[: len(answered.prompt)]
        (row,) = TextRenderer(chat).prepare([ScoringItem("k", messages, response, False)]).rows
        assert row.ids == whole
        if other.split() != response.split() and other.strip():  # else they are no pair
            assert trained(chat, messages, response, other)[0] == whole
        # By transformers alone, but for a begin token that stands there twice.
        turns = [*messages, {"role": "assistant", "content": response}]
        if family:
            reference = tokenizer.apply_chat_template(turns, return_dict=False)
        else:
            reference = [*tokenizer(USER["content"] + response)["input_ids"], 2]
        assert whole == reference


@pytest.mark.parametrize("family", [*FAMILIES, None])
def test_a_prompt_is_where_its_response_begins_and_a_response_has_its_end(tokenizer, family):
    chat = chat_of(tokenizer, family)
    prompt, (text, before, ids) = chat.prompt_ids([USER]), chat.answered([USER], "Eight.")
    assert before == prompt[: len(before)]
    assert shared_prefix(prompt, [*before, *ids]) == len(before)
    assert tokenizer.decode(ids).startswith(("Eight.", " Eight.", "<think>\n\n</think>\n\nEight."))
    assert chat.turn_end == ENDS.get(family or "", 3 if family else 2)
    assert chat.turn_end in ids[-4:]
    assert "Eight." in text


@pytest.mark.parametrize("family", ["chatml-bos", "llama-2"])
def test_begin_tokens_between_turns_are_the_templates_own(tokenizer, family):
    chat = chat_of(tokenizer, family)
    assert chat.prompt_ids(EARLIER).count(1) >= 2
    assert trained(chat, EARLIER, "Eight.", "Six.")[0].count(1) >= 2


@pytest.mark.parametrize("family", ["phi", "zephyr", "thinking"])
def test_a_template_without_a_begin_token_gets_none(tokenizer, family):
    """The tokenizer adds one to plain text; the template is the whole truth about a conversation."""
    assert 1 not in chat_of(tokenizer, family).prompt_ids([USER])


def test_reasoning_that_the_template_drops_is_never_read_in_silence(tokenizer):
    chat, response = chat_of(tokenizer, REASONING), "It is an arachnid, which have eight.\n</think>\n\nEight."
    with pytest.raises(ResponseChanged, match=r"leaves out a part of the response: 'It is an arachnid.*</think>'"):
        chat.conversation([USER], response)
    found = TextRenderer(chat).prepare([ScoringItem("k", (USER,), response, False)])
    assert (found.rows, [s.reason for s in found.refused]) == ([], ["changed_by_template"])


def test_a_response_that_does_not_follow_the_prompt_as_it_is_sampled(tokenizer):
    """A reward model reads the whole text; a policy would be trained behind <|A|>, and sampled behind <|A|><think>."""
    chat = chat_of(tokenizer, REASONING)
    assert chat.conversation([USER], "Eight.").endswith("<|A|>Eight.<eos>")
    with pytest.raises(ResponseChanged, match="opens a response with '<think>' when it is sampled"):
        chat.answered([USER], "Eight.")


def test_reasoning_is_kept_where_the_template_keeps_it(tokenizer):
    chat, response = chat_of(tokenizer, "thinking"), "<think>\nEight legs.\n</think>\n\nEight."
    assert tokenizer.decode(chat.answered([USER], response).ids) == response + "<eot>\n"
    chat = chat_of(tokenizer, "reasoning-kept")
    assert tokenizer.decode(chat.answered([USER], "Legs.\n</think>\n\nEight.").ids) == "Legs.\n</think>\n\nEight.<eos>"


@pytest.mark.parametrize(("thinking", "opened"), [(True, ""), (False, "<think>\n\n</think>\n\n")])
def test_a_variable_decides_how_a_response_is_opened(tokenizer, thinking, opened):
    tokenizer.chat_template = THINKING
    chat = Chat(tokenizer, name="m", choice=TemplateChoice(variables={"enable_thinking": thinking}))
    assert chat.text([USER], answer_next=True).endswith(f"[im]assistant\n{opened}")
    begins = "Eight." if opened else "<think>\n\n</think>"
    assert tokenizer.decode(chat.answered([USER], "Eight.").ids).startswith(begins)


@pytest.mark.parametrize("family", ["chatml", "llama-2", "mistral", "phi"])
def test_the_engine_and_the_models_read_what_the_encoder_gives(family, make_policy, make_reward_model, tmp_path):
    from prefdata.engines.hf.generator import TransformersGenerator
    from prefdata.scorers.causal_lm.likelihood import LanguageModel
    from prefdata.scorers.classifier.hf import RewardModel

    own = {"tokenizer": {"chat_template": FAMILIES[family]}}
    policy = identify(str(make_policy(tmp_path / "policy", **own)), "causal-lm")
    reward = identify(str(make_reward_model(tmp_path / "reward", **own)), "reward-model")
    chat = Chat.load(policy.folder())
    (whole,) = chat.encode([chat.conversation(EARLIER, "Eight.")], complete=True)
    _, asked = LanguageModel(policy, device="cpu").answer(EARLIER, "Eight.")
    assert [*asked.prompt, *asked.ids] == whole
    assert TransformersGenerator(policy, device="cpu").render(EARLIER) == chat.prompt_ids(EARLIER)
    (row,) = RewardModel(reward, device="cpu").texts.prepare([ScoringItem("k", EARLIER, "Eight.", False)]).rows
    assert row.ids == whole
    assert len(asked.prompt) == shared_prefix(chat.prompt_ids(EARLIER), whole)
