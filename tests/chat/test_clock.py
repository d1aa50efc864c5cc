"""A chat template that reads the clock is given one date: the same command on the next day renders the same prompts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefdata.candidates.job import SamplingJob
from prefdata.candidates.sample import dry_run, expand_sweep, sample, sample_many
from prefdata.chat import clock
from prefdata.chat.clock import dated, frozen, with_date
from prefdata.chat.encoder import Chat
from prefdata.errors import SpecConflict, UsageError
from prefdata.models.files import ModelFiles, identify
from prefdata.prompts.ingest import ingest
from prefdata.scorers.open import dated_scorer, scorer_identity
from prefdata.scores.rank import rank
from prefdata.specs import IngestSpec, RankSpec, SampleSpec
from prefdata.specs.chat import TemplateChoice
from prefdata.storage.run import Run

TURNS = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<eot>{% endfor %}"
DATED = "{{ bos_token }}Today: {{ strftime_now('%d %b %Y') }}.<eot>" + TURNS
OPENS = "{% if add_generation_prompt %}[assistant] {% endif %}"
LLAMA = (  # as Llama 3.1 has it
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}"
    "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}" + "{{ date_string }}<eot>" + TURNS + OPENS
)
RARELY = "{% if messages[0]['content'] == 'Say one.' %}{{ strftime_now('%A') }}{% endif %}" + TURNS + OPENS
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`on("2025-03-01")`: let that be today; it is the first of March at first."""

    def set_to(day: str) -> None:
        monkeypatch.setattr(clock, "today", lambda: day)

    set_to("2025-03-01")
    return set_to


@pytest.fixture
def model(tiny_policy: Path, tmp_path: Path) -> Callable[..., Path]:
    """`model(template)`: the tiny policy with another chat template; `model(template, reward)` another model."""

    def make(template: str = DATED + OPENS, start: Path = tiny_policy, name: str = "dated") -> Path:
        folder = shutil.copytree(start, tmp_path / name)
        (folder / "chat_template.jinja").write_text(template)
        return folder

    return make


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    (tmp_path / "asked.jsonl").write_text('{"prompt": "Say one."}\n{"prompt": "Say two."}\n')
    ingest(run, [str(tmp_path / "asked.jsonl")], IngestSpec(test=0))
    return run


def found(folder: Path) -> ModelFiles:
    return identify(str(folder), "causal-lm")


def date_of(folder: Path, **choice: Any) -> str | None:
    return with_date(TemplateChoice(**choice), [found(folder)]).date


def test_the_time_of_a_date_is_midnight() -> None:
    assert frozen("2025-03-01")("%Y-%m-%d %H:%M:%S %A %B") == "2025-03-01 00:00:00 Saturday March"
    assert frozen("2025-03-01")(format="%j") == "060"


@pytest.mark.parametrize(
    "template",
    [
        DATED,
        LLAMA,
        "{% macro day() %}{{ strftime_now('%j') }}{% endmacro %}{{ day() }}" + TURNS,
        "{% if tools %}{{ strftime_now('%Y') }}{% endif %}" + TURNS,
        "{% if messages[0]['role'] != 'system' %}{{ strftime_now('%Y') }}{% endif %}" + TURNS,
        "{% if messages[0]['role'] == 'system' %}{{ strftime_now('%Y') }}{% endif %}" + TURNS,
        "{% if add_generation_prompt %}{{ strftime_now('%Y') }}{% endif %}" + TURNS,
        "{% if messages | selectattr('role', 'equalto', 'tool') | list %}{{ strftime_now('%Y') }}{% endif %}" + TURNS,
        "{% if (strftime_now('%Y') | int) > 2024 %}new{% endif %}" + TURNS,
        "{{ raise_exception('no system') if messages[0]['role'] == 'system' }}{{ strftime_now('%Y') }}" + TURNS,
    ],
)
def test_a_template_that_reads_the_clock_is_found(model, on, template: str) -> None:
    assert date_of(model(template)) == "2025-03-01"


@pytest.mark.parametrize(
    ("template", "choice"),
    [
        (TURNS, {}),
        ("{# strftime_now is not used #}" + TURNS, {}),
        ("{% set date_string = '26 Jul 2024' %}{{ date_string }}" + TURNS, {}),
        (LLAMA, {"variables": {"date_string": "1 May 2020"}}),
        ("{% if strftime_now is defined %}{% endif %}" + TURNS, {}),
        ("{% if false %}{{ strftime_now('%Y') }}{% endif %}" + TURNS, {}),
        ("{% set date_string = '26 Jul 2024' %}" + LLAMA, {}),
        (RARELY, {}),
        ("{% if now is defined %}{{ now() }}{% endif %}" + TURNS, {}),
    ],
)
def test_a_template_that_does_not_read_it_needs_no_date(model, on, template: str, choice: dict[str, Any]) -> None:
    assert date_of(model(template), **choice) is None


def test_templates_elsewhere_are_read_too(model, on, tmp_path: Path, edit_json) -> None:
    plain = model(TURNS)
    (tmp_path / "own.jinja").write_text(DATED)
    assert date_of(plain, named=str(tmp_path / "own.jinja")) == "2025-03-01"
    assert date_of(model(DATED, name="other"), named=str(plain / "chat_template.jinja")) is None
    (plain / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": TURNS}, {"name": "dated", "template": DATED}]
    edit_json(plain / "tokenizer_config.json", chat_template=named)
    assert date_of(plain) is None
    assert date_of(plain, named="dated") == "2025-03-01"


def test_a_date_is_rendered_wherever_the_template_reads_the_clock(model, on) -> None:
    marked = DATED.replace("Today", "{% generation %}{% endgeneration %}Today")
    for number, template in enumerate((DATED, LLAMA, marked)):
        folder = model(template, name=f"m{number}")
        chat = Chat.load(folder, choice=TemplateChoice(date="2031-12-24"))
        assert "24 Dec 2031" in chat.text(HI, None, answer_next=True)
        assert "24 Dec 2031" in chat.conversation(HI, "Yes.")
        assert "24 Dec 2031" in chat.complete(HI, [{"role": "assistant", "content": "Yes."}]).text
        assert chat.template_hash != Chat.load(folder, choice=TemplateChoice(date="2031-12-25")).template_hash


def test_without_a_date_the_clock_is_never_read(model) -> None:
    with pytest.raises(UsageError, match=r"reads the clock.*--chat-template-date \d{4}-\d\d-\d\d"):
        Chat.load(model(DATED)).text(HI, None, answer_next=True)


def test_a_conversation_that_makes_it_read_the_clock_is_an_error_with_the_way_out(run: Run, model, on) -> None:
    """No conversation that is tried asks for the day, but a prompt of the run does: then the date is to be given."""
    spec = SampleSpec(model=str(model(RARELY)), n=1, max_tokens=4, name="s")
    with pytest.raises(UsageError, match="--chat-template-date 2025-03-01"):
        sample(run, spec)
    spec = spec.model_copy(update={"chat_template_date": "2025-03-01"})
    assert sample(run, spec, replace=True).report.rows_out == 2


def test_a_date_that_nothing_reads_is_refused(run: Run, model, tiny_policy: Path, tiny_reward_model: Path) -> None:
    says = {"chat_template_date": "2025-03-01"}
    with pytest.raises(UsageError, match="changes nothing"):
        SamplingJob.of(run, SampleSpec(model=str(tiny_policy), **says))
    with pytest.raises(UsageError, match="changes nothing"):
        SamplingJob.of(run, SampleSpec(model=str(model()), raw=True, **says))
    with pytest.raises(UsageError, match="changes nothing"):
        SamplingJob.of(run, SampleSpec(model="m", engine="openai", **says))
    with pytest.raises(UsageError, match="changes nothing"):
        dated_scorer(RankSpec(reward_model=str(tiny_reward_model), **says))
    with pytest.raises(UsageError, match="goes with"):
        RankSpec.parse({"function": "f.py:f", **says})
    for wrong in ("tomorrow", "2025-3-1", "20250301", "2025-02-30", "2025-03-01T00:00"):
        with pytest.raises(UsageError, match="should be a date, as YYYY-MM-DD"):
            SampleSpec.parse({"model": "m", "chat_template_date": wrong})


def prompts_of(run: Run, name: str = "s") -> dict[str, int]:
    return {row["candidate_id"]: row["prompt_tokens"] for row in run.partition("candidates", name).read().to_pylist()}


def test_the_same_command_on_the_next_day_continues_with_the_first_days_date(
    run: Run, model, on, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampled on the 1st with n 1 and on the 2nd with n 2: the same candidates as n 2 on the 1st."""
    rendered = []
    real = Chat.text
    monkeypatch.setattr(Chat, "text", lambda *a, **k: (rendered.append(text := real(*a, **k)), text)[1])
    spec = SampleSpec(model=str(model()), n=1, max_tokens=4, name="s")
    sample(run, spec)
    assert run.partition("candidates", "s").lineage().spec["chat_template_date"] == "2025-03-01"
    on("2025-03-02")
    assert sample(run, spec).did == "kept"
    assert "01 Mar 2025" in dry_run(run, spec)["rendered"]
    assert sample(run, spec.model_copy(update={"n": 2})).did == "continued"
    assert {"01 Mar 2025" in text for text in rendered if "Today" in text} == {True}
    with pytest.raises(SpecConflict, match="chat_template_date: '2025-03-01' -> '2025-03-02'"):
        sample(run, spec.model_copy(update={"chat_template_date": "2025-03-02"}))
    once = Run(run.path.parent / "once")
    ingest(once, [str(run.path.parent / "asked.jsonl")], IngestSpec(test=0))
    sample(once, spec.model_copy(update={"n": 2, "chat_template_date": "2025-03-01"}))
    assert prompts_of(once) == prompts_of(run)
    sample(once, spec.model_copy(update={"n": 2, "name": "today"}))
    assert not prompts_of(once, "today").keys() & prompts_of(run).keys()
    sample(run, spec, replace=True)
    assert run.partition("candidates", "s").lineage().spec["chat_template_date"] == "2025-03-02"


def test_a_sweep_has_one_date(run: Run, model, on) -> None:
    spec = SampleSpec(model=str(model()), n=1, max_tokens=4, name="s")
    sample_many(run, expand_sweep(spec.model_copy(update={"sweep": ("temperature=0.5",)})))
    on("2025-03-02")
    sample_many(run, expand_sweep(spec.model_copy(update={"sweep": ("temperature=1.5,0.5",)})))
    dates = {p.lineage().spec["chat_template_date"] for p in run.partitions("candidates")}
    assert (dates, len(run.partitions("candidates"))) == ({"2025-03-01"}, 2)


def test_scores_keep_their_date(run: Run, model, on, tiny_policy: Path, tiny_reward_model: Path) -> None:
    sample(run, SampleSpec(model=str(tiny_policy), n=2, max_tokens=4, name="s"))
    reward = model(start=tiny_reward_model, name="reward")
    spec = RankSpec(reward_model=str(reward), name="rm")
    rank(run, spec)
    before = run.partition("scores", "rm").read().to_pylist()
    on("2025-03-02")
    assert rank(run, spec).did == "kept"
    sample(run, SampleSpec(model=str(tiny_policy), n=3, max_tokens=4, name="s"))
    rank(run, spec)
    assert run.partition("scores", "rm").lineage().spec["chat_template_date"] == "2025-03-01"
    rank(run, spec.model_copy(update={"name": "at_once", "chat_template_date": "2025-03-01"}))
    later, at_once = (
        {row["candidate_id"]: row["text_hash"] for row in run.partition("scores", name).read().to_pylist()}
        for name in ("rm", "at_once")
    )
    assert later == at_once
    assert len(later) > len(before)


@pytest.mark.parametrize(
    "given",
    [
        lambda lm: {"pairwise": lm},
        lambda lm: {"pointwise": lm},
        lambda lm: {"judge": lm},
        lambda lm: {"judge": "m", "engine": "openai", "tokenizer": lm},
        lambda lm: {"mean_logprob": lm},
        lambda lm: {"implicit": lm, "reference": lm},
        lambda lm: {"similarity": "states", "reference": lm},
    ],
)
def test_every_scorer_with_a_template_has_a_date(model, on, given) -> None:
    spec = RankSpec(**given(str(model())))
    identities = []
    for began in (None, "2025-03-01", "2025-03-02"):
        resolved = dated_scorer(spec, began)
        assert resolved.chat_template_date == (began or "2025-03-01")
        identities.append(resolved.fingerprint())
        assert scorer_identity(resolved) == scorer_identity(spec)
    assert identities[0] == identities[1] != identities[2]


def test_a_format_instead_of_a_template_needs_no_date(model, on, tiny_reward_model: Path, tmp_path: Path) -> None:
    (tmp_path / "format.txt").write_text("{prompt} {response}")
    reward = model(start=tiny_reward_model, name="reward")
    spec = RankSpec(reward_model=str(reward), text_format=str(tmp_path / "format.txt"))
    assert dated_scorer(spec) == spec


def test_a_training_keeps_its_date(model, on, tmp_path: Path) -> None:
    from prefdata.train.specs import DpoSpec
    from prefdata.train.train import train_dpo

    template = DATED.replace("<eot>{% endfor %}", "<eos>{% endfor %}") + OPENS
    data = tmp_path / "pairs.jsonl"
    turn = {"chosen": [{"role": "assistant", "content": "good"}], "rejected": [{"role": "assistant", "content": "bad"}]}
    data.write_text(json.dumps({"prompt": HI, **turn}) + "\n")
    spec = DpoSpec(model=str(model(template)), batch_size=1)
    train_dpo(data, spec, tmp_path / "out")
    lineage = json.loads((tmp_path / "out" / "_spec.json").read_text())
    assert lineage["spec"]["chat_template_date"] == "2025-03-01"
    on("2025-03-02")
    assert train_dpo(data, spec, tmp_path / "out").did == "kept"
    with pytest.raises(SpecConflict, match="chat_template_date"):
        train_dpo(data, dated(spec, [found(Path(spec.model))]), tmp_path / "out")


def test_checks_and_evaluations_of_a_reward_model_take_a_date(model, tiny_reward_model: Path, prefdata, write) -> None:
    reward = model(start=tiny_reward_model, name="reward")
    data = write({"prompt": "Say one.", "chosen": "good", "rejected": "bad"})
    day = ("--chat-template-date", "2025-03-01")
    assert prefdata("check", "reward-model", reward, "--engine", "transformers", *day)[0] in (0, 1)
    one, other, third = (
        prefdata("eval", "reward-model", reward, data, "--format", "json", "--chat-template-date", day)
        for day in ("2025-03-01", "2025-03-01", "2031-12-24")
    )
    assert (one[0], one) == (0, other)
    assert one[1] != third[1]
    assert prefdata("eval", "reward-model", reward, data)[0] == 0  # today's, unless given


def test_a_hub_models_templates_are_read_without_its_weights(model, on, tmp_path: Path, monkeypatch) -> None:
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--org--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    folder = shutil.copytree(model(), repo / "snapshots" / commit)
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    files = identify("org/tiny", "causal-lm")
    assert files.text_folder() == folder
    assert with_date(TemplateChoice(), [files]).date == "2025-03-01"
