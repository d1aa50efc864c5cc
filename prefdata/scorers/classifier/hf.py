"""Sequence-classification reward models on transformers: the raw logits of a text, whatever else is in its batch.

The conversation with its response is rendered by the model's own chat template, or by the user's format. The score is
read at the last token by the attention mask, never at the last token that is not the pad token: where pad and end token
are one, that would be the token before the end. A prompt is computed once for its candidates where the network allows
it (`prefixes`); the first prompts are computed both ways, and where these differ whole rows are computed from then on.
The score is computed in float32, whatever the type of the rest: bfloat16 makes scores that differ equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from prefdata.chat.encoder import Chat
from prefdata.models.files import ModelFiles
from prefdata.models.loading import computed, head_in_float32, load, padding_id, pick_device, pick_dtype
from prefdata.models.memory import TokenBudget, is_out_of_memory
from prefdata.scorers.classifier.backbones import CachedBackbone
from prefdata.scorers.classifier.base import Classifier
from prefdata.scorers.classifier.cores import each, fits_one_core
from prefdata.scorers.classifier.labels import Activation, Labels
from prefdata.scorers.classifier.prefixes import (
    PrefixGroup,
    PrefixRunner,
    TokenCount,
    batches,
    group_batches,
    padded,
    prefix_groups,
)
from prefdata.scorers.classifier.rendering import RenderedText, TextRenderer
from prefdata.specs.chat import TemplateChoice

BATCH_TOKENS = {"cpu": 2_048, "cuda": 65_536}
"""Default budgets: rows times the longest row, by kind of device."""

SELF_CHECKED = 4
"""Prompts whose candidates are computed both ways, and rows that are computed alone, before sharing is trusted."""

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""How far two ways of computing a logit may differ, times the logit where that is above 1."""


class RewardModel(Classifier):
    """A Scorer on transformers; see `prefdata.scorers.classifier.base.Classifier`."""

    def __init__(
        self,
        files: ModelFiles,
        *,
        device: str | None = None,
        dtype: str = "auto",
        batch_tokens: int | None = None,
        context_length: int | None = None,
        label: str | None = None,
        activation: Activation = "logit",
        text_format: Path | None = None,
        choice: TemplateChoice = TemplateChoice(),
        share_prompts: bool = True,
    ) -> None:
        """Load the model.

        Args:
            files: what `identify` found.
            device: cpu, cuda, …; the best available unless given.
            dtype: arithmetic; `auto` is float32 on a CPU and bfloat16 on a GPU.
            batch_tokens: tokens of a batch, padding included; made for the device unless given.
            context_length: most tokens of a text; the model's own limit unless given.
            label: which label of several, by name or number; `all` makes each an output.
            activation: the raw logit, or the probability.
            text_format: a file that says how prompt and response become text, instead of the chat template.
            choice: which chat template, with which variables.
            share_prompts: whether a prompt may be computed once for its candidates.

        Raises:
            ModelError: the model or its tokenizer cannot be loaded, or has several labels and none is named.
            UsageError: there is no such device or type.
            UsageError: the model has no such label.
            InputError: the text format cannot be read.
        """
        self.labels = Labels.of(files, label, activation)
        self.outputs = self.labels.outputs
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.computed = computed(self.device, self.dtype)
        chat = Chat.of(files, raw=text_format is not None, choice=choice)
        self.texts = TextRenderer(chat, text_format)
        self.chat = self.texts.chat
        self.context_length = min(context_length or 1 << 20, files.context_length or 1 << 20)
        self.budget = TokenBudget(batch_tokens or BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cpu"]))
        self.versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        self.notes = ()
        self._net: Any = load(AutoModelForSequenceClassification, files, self.dtype, self.device)
        head_in_float32(self._net)
        self.vocabulary = int(self._net.get_input_embeddings().num_embeddings)
        self._pad = padding_id(self.chat.tokenizer, self._net)
        self._head: Any = getattr(self._net, "score", None)
        self._stretches = _stretches(self._net)
        self._several = fits_one_core(self._net, self.device) and not self._stretches
        self._unchecked = self._pads = not self._stretches
        self._computed = TokenCount()
        if self._stretches:
            self.notes += ("Only whole texts of one length are computed together: positions stretch with the longest.",)
        self._branching: PrefixRunner | None = None
        if share_prompts and self._head is not None and not self._stretches:
            self._branching = self._shared_prompts()

    @property
    def padding(self) -> float:
        """The share of padding among the tokens that were computed so far, after the check of the first prompts."""
        return self._computed.padding

    def logits(self, rows: list[RenderedText]) -> Iterator[tuple[list[RenderedText], Tensor]]:
        """Yield the rows with their logits, in batches; see `Classifier.logits`."""
        for done, logits in self.budget.batches(rows, self._in_batches):
            yield list(done), logits

    def close(self) -> None:
        """Give back the model's memory."""
        self._net = self._head = self._branching = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _shared_prompts(self) -> PrefixRunner | None:
        """Return what computes a prompt once for its candidates; None where the network does not allow it."""
        net = self._net.base_model
        try:
            why = CachedBackbone.unfit(net, self._pad, self.device)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            why = f"the model's code raises {type(error).__name__}"
        if why:
            self._note_whole(why)
            return None
        return PrefixRunner(CachedBackbone(net), self._pad, self.device, self._computed, several=self._several)

    def _in_batches(self, rows: Sequence[RenderedText], tokens: int) -> Iterator[tuple[list[RenderedText], Any]]:
        """Batches of so many tokens, each with itself and its logits."""
        if rows and self._unchecked:
            self._check(rows, tokens)
        shared, whole = prefix_groups(rows) if self._branching else ([], rows)
        for done in chain(self._branched(shared, tokens), self._padded(whole, tokens)):
            yield done[0], done

    def _branched(self, found: list[PrefixGroup], tokens: int) -> Iterator[tuple[list[RenderedText], Tensor]]:
        if self._branching is None:
            return
        for group in group_batches(found, tokens):
            for rows, states in self._branching.states(group, tokens):
                yield rows, self._read(states)

    def _padded(self, rows: Sequence[RenderedText], tokens: int) -> Iterator[tuple[list[RenderedText], Tensor]]:
        planned = batches(rows, lambda row: len(row.ids), tokens)
        parts = planned if self._pads else (part for batch in planned for part in _of_one_length(batch))
        tasks = (partial(self._with_rows, part) for part in parts)
        yield from each(tasks, several=self._several)

    def _with_rows(self, rows: list[RenderedText]) -> tuple[list[RenderedText], Tensor]:
        return rows, self._forward(rows)

    @torch.inference_mode()
    def _forward(self, rows: list[RenderedText]) -> Tensor:
        """Compute the logits of whole rows, padded on the right to the longest, shape (rows, labels)."""
        ids, lengths = padded([row.ids for row in rows], self._pad, self.device)
        at = torch.arange(len(rows), device=self.device)
        mask = (torch.arange(ids.shape[1], device=self.device) < lengths[:, None]).long()
        self._computed.add(ids, int(lengths.sum()))
        if self._head is None:  # BERT and similar models read a pooled first token
            logits: Tensor = self._net(input_ids=ids, attention_mask=mask).logits
            return logits
        even = len({len(row.ids) for row in rows}) == 1
        hidden = self._net.base_model(
            input_ids=ids, attention_mask=None if even else mask, use_cache=False
        ).last_hidden_state
        return self._read(hidden[at, lengths - 1])

    @torch.inference_mode()
    def _read(self, states: Tensor) -> Tensor:
        logits: Tensor = self._head(states)
        return logits

    def _check(self, rows: Sequence[RenderedText], tokens: int) -> None:
        """Compare padded and branched rows with rows that are computed alone, and stop using what differs or raises."""
        found = prefix_groups(rows)[0][:SELF_CHECKED] if self._branching else []
        shared = [PrefixGroup(one.prefix, one.branches[:2]) for one in found]
        pairs = [row for family in shared for row, _ in family.branches]
        ordered = sorted(rows, key=lambda row: len(row.ids))
        some = [*pairs, *ordered[:: max(1, len(ordered) // SELF_CHECKED)]][: 4 * SELF_CHECKED]
        some = some[: max(2, tokens // max(len(row.ids) for row in some))]
        distinct = {row.text: row for row in [*some, *pairs]}
        alone = {text: self._forward([row])[0].float() for text, row in distinct.items()}
        if why := self._trouble(lambda: [(some, self._forward(some))], alone):
            self._pads = False
            self.notes += (f"Only texts of one length are computed together: with padding {why}.",)
        if why := self._trouble(lambda: self._branched(shared, tokens), alone):
            self._branching = None
            self._note_whole(why)
        self._computed.tokens = self._computed.needed = 0
        self._unchecked = False

    def _trouble(
        self, compute: Callable[[], Iterable[tuple[list[RenderedText], Tensor]]], alone: dict[str, Tensor]
    ) -> str | None:
        """Why logits that are computed in a faster way cannot be used; None where they are those of rows alone."""
        try:
            worst = self._apart(compute(), alone)
        except Exception as error:  # of the model's own code, which does not know this way
            if is_out_of_memory(error):
                raise
            return f"the model's code raises {type(error).__name__}"
        return f"the scores differ by {worst:.2g}" if worst > TOLERANCE[self.dtype] else None

    def _apart(self, found: Iterable[tuple[list[RenderedText], Tensor]], alone: dict[str, Tensor]) -> float:
        """How far logits are from those of rows alone, at most: relative where they are above 1."""
        worst = 0.0
        for rows, logits in found:
            known = torch.stack([alone[row.text] for row in rows])
            same = (logits == known) | (logits.isnan() & known.isnan())
            differs = torch.where(same, 0.0, (logits.float() - known).abs() / known.abs().clamp(min=1))
            worst = max(worst, float(differs.nan_to_num(torch.inf).max()))
        return worst

    def _note_whole(self, why: str) -> None:
        self.notes += (f"A prompt is computed again for each candidate: {why}.",)


def _stretches(net: torch.nn.Module) -> bool:
    """Whether a longer text beside it turns a text's positions: transformers keeps their frequencies in the network."""
    kinds = [str(getattr(module, "rope_type", "")) for module in net.modules()]  # of each type of layer, or one for all
    return any("longrope" in kind for kind in kinds)


def _of_one_length(rows: Sequence[RenderedText]) -> list[list[RenderedText]]:
    by_length: dict[int, list[RenderedText]] = {}
    for row in rows:
        by_length.setdefault(len(row.ids), []).append(row)
    return list(by_length.values())
