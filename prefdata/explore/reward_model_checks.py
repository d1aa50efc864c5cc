"""check reward-model: whether a reward model's scores are correct.

Each check is a number against a limit, or a fact: the same score whatever else is in the batch, one begin token, the
end token, the token ids that tokenizer and template define, which training sees too, the position that the score is
read at, the raw logit, the same after loading again, and the same through vLLM. A check that cannot be made here (vLLM
is not installed, float16 on a CPU) says so and fails nothing.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from prefdata.chat.clock import with_date
from prefdata.chat.encoder import Chat
from prefdata.errors import ModelError
from prefdata.models.files import ModelFiles, identify, label_names
from prefdata.models.memory import TokenBudget
from prefdata.scorers.classifier.base import Classifier
from prefdata.scorers.classifier.hf import TOLERANCE, RewardModel
from prefdata.scorers.classifier.labels import ALL
from prefdata.scorers.classifier.rendering import RenderedText
from prefdata.scorers.protocol import ScoringItem
from prefdata.specs import EngineSpec
from prefdata.specs.chat import TemplateChoice
from prefdata.stats.calibration import sigmoid

Engine = Literal["auto", "transformers", "vllm"]

EXACT = {"float32": 1e-5, "bfloat16": 5e-2, "float16": 1e-2}
"""Maximum difference of one text's scores between two batches, times the score where that is above 1."""

QUESTIONS = ("Name a colour.", "Why is the sky blue? Answer in a few words, and say how you know it.", "2 + 2?")
ANSWERS = ("Blue.", "I do not know.", "Because of the light: its short waves are scattered most, and so we see them.",
           "é 🎬 \n\n- a list\n- of two", "4", "yes " * 24)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check: its name, whether it passed (None where it could not be made), and the result."""

    check: str
    passed: bool | None
    seen: str
    limit: str = ""

    @property
    def verdict(self) -> str:
        """pass, fail, or not checked."""
        return "not checked" if self.passed is None else "pass" if self.passed else "fail"


def check(
    model: str,
    *,
    engine: Engine = "auto",
    device: str | None = None,
    dtype: str = "float32",
    text_format: Path | None = None,
    choice: TemplateChoice = TemplateChoice(),
    items: Sequence[ScoringItem] = (),
) -> list[CheckResult]:
    """Check a reward model's scores.

    Args:
        model: a folder or a hub name.
        engine: `transformers` leaves vLLM out; `vllm` requires it; `auto` uses it where it is installed.
        device: cpu, cuda, …; by default the best available.
        dtype: arithmetic.
        text_format: instead of the model's chat template.
        choice: which chat template, with which variables.
        items: what to score; by default a few built-in conversations.

    Raises:
        ModelError: the model cannot be used, or none of the texts can be scored.
        EngineError: vLLM was required and cannot be used.
    """
    files = identify(model, "reward-model")
    several = None if len(label_names(files.config)) == 1 else ALL
    choice = choice if text_format else with_date(choice, [files])
    settings: dict[str, Any] = {"label": several, "text_format": text_format, "choice": choice}
    scorer = RewardModel(files, device=device, dtype=dtype, **settings)
    items = list(items) or _built_in()
    rows = _fitting(scorer, items)
    limit = EXACT[scorer.dtype]
    truth = _alone(scorer, rows)
    first = _scores(scorer, items)
    if not first:
        raise ModelError(f"{model} gives no text a score: its output is no number (NaN). Check or fetch the weights.")
    found = [
        _apart("batch", first, truth, limit),
        _apart("batch of two", _two_at_a_time(scorer, items, rows), truth, limit),
        _apart("order", _scores(scorer, items[::-1]), truth, limit),
        _apart("padding", _whole(scorer, rows), truth, max(limit, TOLERANCE[scorer.dtype] / 10)),
        _identical(scorer, items),
        *_tokens(scorer, rows),
        _as_defined(scorer, items),
        _position(scorer, rows, truth, limit),
        _raw(first, truth, limit),
        _as_trained(scorer, items, text_format),
    ]
    notes = [CheckResult("note", None, note) for note in scorer.notes]
    device, dtype = str(scorer.device), scorer.dtype
    scorer.close()
    again = RewardModel(files, device=device, dtype=dtype, **settings)
    found.append(_apart("reload", _scores(again, items), first, 0.0))
    again.close()
    found.append(_through_vllm(files, engine, items, truth, dtype, settings))
    return found + notes


def _built_in() -> list[ScoringItem]:
    asked = [({"role": "user", "content": question},) for question in QUESTIONS]
    return [ScoringItem(f"{i}/{k}", m, answer, False) for i, m in enumerate(asked) for k, answer in enumerate(ANSWERS)]


def _fitting(scorer: RewardModel, items: Sequence[ScoringItem]) -> list[RenderedText]:
    rows = [row for row in scorer.texts.prepare(items).rows if scorer.problem(row) is None]
    if not rows:
        raise ModelError("none of the texts fits the model and its template. Give others with --data.")
    return rows


def _scores(scorer: Classifier, items: Iterable[ScoringItem]) -> dict[str, float]:
    """Return the scores by item and output; items without a score are left out."""
    return {f"{s.key} {s.output}": s.score for s in scorer.score(items) if s.score is not None}


def _two_at_a_time(scorer: RewardModel, items: Sequence[ScoringItem], rows: list[RenderedText]) -> dict[str, float]:
    usual, scorer.budget = scorer.budget, TokenBudget(2 * max(len(row.ids) for row in rows))
    found = _scores(scorer, items)
    scorer.budget = usual
    return found


@torch.inference_mode()
def _alone(scorer: RewardModel, rows: list[RenderedText]) -> dict[str, float]:
    """Compute the scores by definition: each text alone, unpadded, its last token's state through the head."""
    found: dict[str, float] = {}
    for row in rows:
        ids = torch.tensor([row.ids], device=scorer.device)
        net = scorer._net
        if hasattr(net, "score"):
            logits = net.score(net.base_model(ids, use_cache=False).last_hidden_state[:, -1])
        else:
            logits = net(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        for output, value in zip(scorer.outputs, scorer.labels.read(logits)[0].tolist(), strict=True):
            found |= {f"{key} {output}": value for key in row.keys}
    return found


def _whole(scorer: RewardModel, rows: list[RenderedText]) -> dict[str, float]:
    """Compute the scores of all rows in one batch, each padded to the longest."""
    values = scorer.labels.read(scorer._forward(rows)).tolist()
    return {
        f"{key} {output}": value
        for row, of_row in zip(rows, values, strict=True)
        for output, value in zip(scorer.outputs, of_row, strict=True)
        for key in row.keys
    }


def _apart(name: str, found: dict[str, float], known: dict[str, float], limit: float) -> CheckResult:
    if found.keys() != known.keys():
        return CheckResult(name, False, f"{len(found)} scores instead of {len(known)}", f"{limit:g}")
    worst = max(abs(found[key] - known[key]) / max(1.0, abs(known[key])) for key in known)
    return CheckResult(name, worst <= limit, f"{worst:.1e}", f"{limit:g}")


def _identical(scorer: RewardModel, items: Sequence[ScoringItem]) -> CheckResult:
    """Check that a conversation scored in two batches with other neighbours gets one score, and a margin of 0."""
    one = items[len(items) // 2]
    twin = ScoringItem("twin", one.messages, one.response, one.truncated)
    found = _scores(scorer, [*items, twin])
    wanted = {f"{key} {output}" for key in ("twin", one.key) for output in scorer.outputs}
    if lost := wanted - found.keys():
        return CheckResult("identical pair", False, f"{len(lost)} of {len(wanted)} scores are lacking", "0")
    worst = max(abs(found[f"twin {output}"] - found[f"{one.key} {output}"]) for output in scorer.outputs)
    return CheckResult("identical pair", worst == 0.0, f"{worst:.1e}", "0")


def _tokens(scorer: RewardModel, rows: list[RenderedText]) -> list[CheckResult]:
    tokenizer = scorer.chat.tokenizer
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    counts = sorted({0 if begin is None else _leading(row.ids, begin) for row in rows})
    many = "the tokenizer has none" if begin is None else f"{counts[0]} to {counts[-1]}"
    one = CheckResult("one begin token", counts[-1] <= 1, many, "1")
    closed = scorer.chat.closes_plain_text
    written = [row for row in rows if closed or _ends(row.text, scorer.chat)]
    kept = sum(1 for row in written if set(row.ids[-3:]) & ({end} if closed else scorer.chat.special_ids))
    if not written:
        message = "the tokenizer has none" if end is None else f"the text ends without {tokenizer.decode([end])}"
        return [one, CheckResult("end token", None, message)]
    return [one, CheckResult("end token", kept == len(written), f"{kept} of {len(written)}", "all")]


def _as_defined(scorer: RewardModel, items: Sequence[ScoringItem]) -> CheckResult:
    """Check that the token ids are those of the tokenizer and its chat template, but for a second begin token."""
    found = {key: row.ids for row in scorer.texts.prepare(items).rows for key in row.keys}
    same = sum(1 for item in items if item.key in found and found[item.key] == _defined(scorer, item))
    return CheckResult("token ids", same == len(found), f"{same} of {len(found)} as defined", "all")


def _defined(scorer: RewardModel, item: ScoringItem) -> list[int]:
    chat, tokenizer = scorer.chat, scorer.chat.tokenizer
    if chat.template is None:
        ids = list(tokenizer(scorer.texts.text(item.messages, item.response, item.tools))["input_ids"])
        ids += [tokenizer.eos_token_id] if chat.closes_plain_text and ids[-1:] != [tokenizer.eos_token_id] else []
    else:
        turns = [*map(dict, item.messages), {"role": "assistant", "content": item.response}]
        tools = None if item.tools is None else json.loads(item.tools)
        ids = list(tokenizer(chat.template.render(turns, tools).text, add_special_tokens=False)["input_ids"])
    return ids[max(0, _leading(ids, tokenizer.bos_token_id) - 1) :]


@torch.inference_mode()
def _position(scorer: RewardModel, rows: list[RenderedText], truth: dict[str, float], limit: float) -> CheckResult:
    """Scores are read at the last token; transformers' own forward skips padding tokens to find it."""
    found: dict[str, float] = {}
    for row in rows:
        ids = torch.tensor([row.ids], device=scorer.device)
        values = scorer.labels.read(scorer._net(input_ids=ids).logits)[0].tolist()
        named = dict(zip(scorer.outputs, values, strict=True))
        found |= {f"{key} {name}": value for name, value in named.items() for key in row.keys}
    check = _apart("score position", found, truth, limit)
    if check.passed:
        return check
    pad = scorer._net.config.pad_token_id
    why = (
        "its padding token is the end token, so that it reads the one before"
        if pad in rows[0].ids[-1:]
        else (f"it differs by {check.seen}")
    )
    return CheckResult(
        check.check, None, f"read at the last token, but transformers' own forward is not: {why}", check.limit
    )


def _leading(ids: list[int], begin: int | None) -> int:
    return next((at for at, token in enumerate(ids) if token != begin), len(ids))


def _ends(text: str, chat: Chat) -> bool:
    return text.rstrip().endswith(tuple(chat.tokenizer.decode([token]).strip() for token in chat.special_ids))


def _raw(scores: dict[str, float], truth: dict[str, float], limit: float) -> CheckResult:
    """Check that the score is the logit, not its sigmoid."""
    probabilities = sigmoid(np.array([truth[key] for key in scores]))
    squashed = float(np.abs(np.array(list(scores.values())) - probabilities).max())
    close = _apart("raw logit", scores, truth, limit)
    return CheckResult(
        close.check, close.passed, f"{close.seen} from the logit, {squashed:.1e} from its sigmoid", close.limit
    )


def _as_trained(scorer: RewardModel, items: Sequence[ScoringItem], text_format: Path | None) -> CheckResult:
    """Check that the token ids are those that `prefdata train rm` trains on."""
    if text_format is not None:
        return CheckResult("text as trained", None, "a text format is read as it is, and training knows none")
    from prefdata.train.encode import Encoder
    from prefdata.train.parsing import Item as Trained
    from prefdata.train.parsing import Row as TrainRow

    found = {key: row.ids for row in scorer.texts.prepare(items).rows for key in row.keys}
    items = [item for item in items if item.key in found]
    encoder, rows = Encoder(scorer.chat, sampled=False), []
    for item in items:
        prompt = [{"role": m["role"], "content": m["content"]} for m in item.messages]
        answer = [{"role": "assistant", "content": item.response}]
        tools = None if item.tools is None else json.loads(item.tools)
        rows.append(Trained(prompt, (answer,), 1.0, None, tools, TrainRow("check", 1, "train", {}), False))
    examples = encoder.encode(rows).examples
    trained = [[*example.prompt.tolist(), *example.responses[0].tolist()] for example in examples]
    same = sum(ids == found[item.key] for item, ids in zip(items, trained, strict=True))
    return CheckResult("text as trained", same == len(items), f"{same} of {len(items)} the same", "all")


def _through_vllm(
    files: ModelFiles, engine: Engine, items: Sequence[ScoringItem], truth: dict[str, float], dtype: str, settings: Any
) -> CheckResult:
    name = "transformers = vLLM"
    if engine == "transformers":
        return CheckResult(name, None, "left out by --engine transformers")
    if engine == "auto" and importlib.util.find_spec("vllm") is None:
        return CheckResult(name, None, "vLLM is not installed")
    from prefdata.scorers.classifier.vllm import PoolingRewardModel

    scorer = PoolingRewardModel(files, EngineSpec(dtype=dtype), **settings)
    try:
        return _apart(name, _scores(scorer, items), truth, 10 * EXACT[dtype])
    finally:
        scorer.close()
