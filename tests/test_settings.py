"""Settings on the command line and in a YAML file: what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest
from scored_runs import answer, scored_run

SAMPLE = ("sample", "r", "--model", "m")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("curves", "r", "--seed", "-1"), "curves: --seed: should be greater than or equal to 0, not -1"),
        (("curves", "r", "-n", "0"), "curves: -n: should be greater than or equal to 1, not 0"),
        (("curves", "r", "-n", "2.5"), "should be a valid integer, not '2.5'"),
        (("curves", "r", "--scorer", "rm", "--gold", "rm"), "--gold rm is the scorer itself"),
        (
            (*SAMPLE, "--max-tokens", "32", "--min-tokens", "99"),
            "sample: --max-tokens 32 is below --min-tokens 99, so that a response could not end",
        ),
        ((*SAMPLE, "--diversity-penalty", "0.5"), "--diversity-penalty goes with --search diverse-beam"),
        ((*SAMPLE, "--stop", ""), "sample: --stop: should not be an empty text"),
        ((*SAMPLE, "--where", " "), "sample: --where: the condition is empty"),
        (("select", "r", "--where", ""), "select: --where: the condition is empty"),
        (("pair", "r", "--where", ""), "pair: --where: the condition is empty"),
        (("select", "r", "--name", ""), "select: --name: should not be an empty text: give one, or leave it out"),
        (("pair", "r", "--selector", ""), "pair: --selector: should not be an empty text"),
        (("pair", "r", "--sampler", ""), "pair: --sampler: should not be an empty text"),
        (("rank", "r", "--function", ""), "rank: --function: should not be an empty text"),
        (("ingest", "r", "PROMPTS", "--source", ""), "ingest: --source: should not be an empty text"),
        (("ingest", "r", "PROMPTS", "--source", "s" * 300), "it has 300 characters, 100 are the most"),
        (
            ("select", "r", "--method", "threshold", "--threshold", "2", "--scale", "min-max"),
            "--threshold 2 is not within 0 and 1",
        ),
        (("select", "r", "-k", "2.5"), "'-k' / '--k': should be a valid integer, not '2.5'"),
        (("select", "r", "--beta", "hot"), "'--beta': should be a valid number, not 'hot'"),
        (("train", "sft", "d", "--out", "o", "--loss", "x"), "--loss x: there is no such loss. Known: nll"),
        (("select", "r", "--scale", "log"), "'--scale': should be raw or min-max, not 'log'"),
    ],
)
def test_what_cannot_be_asked(arguments, said, prefdata, write, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    prompts = write({"prompt": "Say it."})
    code, out, err = prefdata(*(prompts if part == "PROMPTS" else part for part in arguments))
    assert code == 2
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert not Path("r").exists()


def test_the_only_scores_are_no_gold_for_themselves(prefdata, tmp_path) -> None:
    run = scored_run(tmp_path / "r", [answer("a", index, float(index)) for index in range(2)])
    code, _, err = prefdata("curves", run, "--gold", "reward")
    assert code == 2
    assert "--gold reward is the scorer itself" in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("scorer: reward", '"scorer" is a setting of select: put it under `select:`.'),
        ("learning: 3", 'unknown section "learning". Known:'),
        ("select: {sampler: policy}", "select: sampler: should be a list, [a, b, …], not 'policy'"),
        ("select: {scorer: [reward]}", "select: scorer: should be a valid string, not ['reward']"),
        ("select:\n  k: 3\n  beta: 1\n  k: 4", 'line 4 gives "k" again'),
        ("select: {k: 3}\nselect: {k: 4}", 'line 2 gives "select" again'),
        ("select: {where: ''}", "select: where: the condition is empty"),
        ("select: {name: ''}", "select: name: should not be an empty text"),
    ],
)
def test_a_file_that_is_not_as_it_should_be(text, said, prefdata, tmp_path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(text)
    code, _, err = prefdata("select", "r", "-c", config, "--print-config")
    assert code == 2
    assert said in err
    assert "run.yaml" in err


def test_a_trainer_s_settings_stand_under_two_words(prefdata, tmp_path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("lr: 0.1")
    err = prefdata("train", "dpo", "d", "--out", "o", "-c", config, "--print-config")[2]
    assert '"lr" is a setting of train dpo: put it under `train: dpo:`.' in err


def test_a_key_that_is_taken_over_may_be_given_anew(prefdata, tmp_path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("select: &mine {k: 3, method: top-k}\npair: {<<: *mine, k: 4}\n")
    assert prefdata("select", "r", "-c", config, "--print-config")[0] == 0


def test_a_folder_is_no_yaml_file(prefdata, tmp_path) -> None:
    code, _, err = prefdata("select", "r", "-c", tmp_path)
    assert code == 2
    assert f"{tmp_path} is a folder: name a YAML file." in err


def test_numbers_on_the_command_line(prefdata) -> None:
    flags = ("--method", "rso", "-k", "3", "--beta", "inf", "--seed", "7", "--scale", "raw")
    out = prefdata("select", "r", *flags, "--print-config")[1]
    assert "  k: 3\n" in out
    assert "  beta: .inf\n" in out or "  beta: Infinity\n" in out
    assert "  seed: 7\n" in out


@pytest.mark.parametrize(("flag", "value"), [("--device", "foo"), ("--dtype", "float12")])
def test_no_such_device_or_type_is_wrong_usage(flag, value, prefdata, write, tmp_path, tiny_policy) -> None:
    run = tmp_path / "r"
    prefdata("ingest", run, write({"prompt": "Say it."}))
    code, _, err = prefdata("sample", run, "--model", tiny_policy, "--engine", "transformers", flag, value)
    assert code == 2
    assert f"{flag} should be " in err
    assert f"not '{value}'" in err
