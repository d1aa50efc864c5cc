"""The shipped data files: rebuilt byte for byte, split cleanly, and noisy exactly as stated."""

import json
from pathlib import Path

import pytest

from prefdata import sample_data
from prefdata.ids import prompt_id
from prefdata.sample_data.corpus import FLIPPED, TEST_PROMPTS, TIE_MARGIN, TRAIN_PROMPTS, corpus, write_corpus
from prefdata.sample_data.world import true_reward, wishes

FOLDER = Path(sample_data.__file__).parent
FILES = ("prompts", "demonstrations", "preferences", "ties", "heldout_preferences", "rated")


def shipped(name):
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text("utf-8").splitlines()]


def split(name):
    return [row["messages"] for row in shipped("prompts") if row["split"] == name]


def test_the_files_are_what_the_seed_writes(tmp_path):
    write_corpus(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.jsonl" for name in FILES)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (FOLDER / path.name).read_bytes(), path.name


def test_another_seed_writes_another_world():
    assert corpus(2)["prompts.jsonl"] != shipped("prompts")


def test_splits_have_the_stated_sizes_and_share_nothing():
    train, test = split("train"), split("test")
    assert (len(train), len(test)) == (TRAIN_PROMPTS, TEST_PROMPTS) == (500, 150)
    assert len({prompt_id(messages) for messages in train + test}) == 650
    assert not {wishes(messages) for messages in train} & {wishes(messages) for messages in test}
    # Every word that a held-out request asks for was asked for in training: held out are the combinations.
    for field in ("topic", "genre", "tone", "aspect", "sentences"):
        assert {getattr(wishes(m), field) for m in test} <= {getattr(wishes(m), field) for m in train}


def test_prompt_rows_say_what_they_ask():
    for row in shipped("prompts"):
        asked = wishes(row["messages"])
        assert row["metadata"] == {k: getattr(asked, k) for k in asked.__slots__ if getattr(asked, k) is not None}
        assert row["tags"] == [tag for tag in (asked.genre, asked.tone) if tag]


def test_some_prompts_have_a_system_message():
    roles = [tuple(m["role"] for m in row["messages"]) for row in shipped("prompts")]
    assert set(roles) == {("user",), ("system", "user")}
    assert 0.1 < roles.count(("system", "user")) / len(roles) < 0.4


@pytest.mark.parametrize(("name", "of"), [("preferences", "train"), ("ties", "train"), ("heldout_preferences", "test")])
def test_pairs_are_of_their_split(name, of):
    assert {prompt_id(row["prompt"]) for row in shipped(name)} <= {prompt_id(messages) for messages in split(of)}


def test_demonstrations_answer_train_prompts():
    rows = [row["messages"] for row in shipped("demonstrations")]
    assert {prompt_id(messages[:-1]) for messages in rows} == {prompt_id(messages) for messages in split("train")}
    assert {messages[-1]["role"] for messages in rows} == {"assistant"}
    assert len({messages[-1]["content"] for messages in rows}) > 0.99 * len(rows)


def margin(row):
    chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
    return true_reward(row["prompt"], chosen) - true_reward(row["prompt"], rejected)


def test_one_preference_in_ten_is_flipped():
    rows = shipped("preferences")
    assert all(row["true_margin"] == pytest.approx(margin(row), abs=1e-6) for row in rows)
    assert sum(row["true_margin"] < 0 for row in rows) == round(FLIPPED * len(rows))
    assert all(abs(row["true_margin"]) >= TIE_MARGIN for row in rows)


def test_heldout_preferences_are_in_true_order():
    rows = shipped("heldout_preferences")
    assert len(rows) > 500
    assert min(row["true_margin"] for row in rows) >= TIE_MARGIN
    assert all(row["true_margin"] == pytest.approx(margin(row), abs=1e-6) for row in rows)


def test_ties_name_no_winner():
    rows = shipped("ties")
    assert 0.05 < len(rows) / (len(rows) + len(shipped("preferences"))) < 0.25
    for row in rows:
        assert set(row) == {"prompt", "responses"}
        first, second = (true_reward(row["prompt"], response) for response in row["responses"])
        assert abs(first - second) < TIE_MARGIN
        assert row["responses"][0] != row["responses"][1]
