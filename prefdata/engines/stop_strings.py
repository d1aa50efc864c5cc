"""Stop strings: texts that end a response, handled alike for every engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefdata.engines.protocol import Sampling

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from prefdata.chat.encoder import Chat


def before_stop(text: str, stop: Sequence[str], past: int = 0) -> str | None:
    """Return the text before the stop string that is complete first, or None where none occurs.

    Which is complete first does not depend on where tokens begin and end. Of two that end at one place, the longer.

    Args:
        text: a response's.
        stop: the stop strings; empty ones are ignored.
        past: only stop strings that end after this many characters count.
    """
    found = []
    for one in filter(None, stop):
        place = text.find(one, max(past - len(one) + 1, 0))
        if place >= 0:
            found.append((place + len(one), place))
    return text[: min(found)[1]] if found else None


class StopStrings:
    """Find stop strings in growing responses, decoding a response only when its last token may have completed one."""

    def __init__(self, chat: Chat, vocabulary: int) -> None:
        """Prepare for a model with that tokenizer and vocabulary size."""
        self._chat, self._vocabulary = chat, vocabulary
        self._pieces: list[str] | None = None
        self._suspects: dict[tuple[str, ...], list[bool]] = {}

    def suspects(self, stop: tuple[str, ...]) -> list[bool]:
        """For each token, whether it can complete one of the texts: it has a last character in it, or a part of one."""
        if not stop:
            return [False] * self._vocabulary
        if stop not in self._suspects:
            if self._pieces is None:
                self._pieces = self._chat.pieces(self._vocabulary)
            last = {one[-1] for one in stop} | {"\ufffd"}
            self._suspects[stop] = [not last.isdisjoint(piece) for piece in self._pieces]
        return self._suspects[stop]

    def watch(self, samplings: Sequence[Sampling], device: torch.device) -> StopMonitor | None:
        """Return the monitor of a batch with these settings, or None where no row has a stop string."""
        stops = [tuple(filter(None, sampling.stop)) for sampling in samplings]
        kinds = {stop: i for i, stop in enumerate(dict.fromkeys(stops))}
        if not any(kinds):
            return None
        import torch

        table = torch.tensor([self.suspects(stop) for stop in kinds], device=device)
        return StopMonitor(self, samplings, table, torch.tensor([kinds[stop] for stop in stops], device=device))

    def cut(self, token_ids: Sequence[int], stop: tuple[str, ...], min_tokens: int) -> str | None:
        """Return the text before the stop string that these tokens complete, or None; `min_tokens` come before any."""
        if not any(stop) or len(token_ids) <= min_tokens:
            return None
        past = len(self._chat.decode(token_ids[:min_tokens])) if min_tokens else 0
        return before_stop(self._chat.decode(token_ids), stop, past)


@dataclass(frozen=True)
class StopMonitor:
    """Look for stop strings in the rows of a batch.

    Attributes:
        texts: the `StopStrings` of the model.
        samplings: of all rows.
        table: (S, V) bool, for each set of stop strings the tokens that can complete one.
        kinds: (B,) which set each row has.
    """

    texts: StopStrings
    samplings: Sequence[Sampling]
    table: Tensor
    kinds: Tensor

    def ended(self, live: Tensor, token: Tensor, tokens: Tensor, length: int) -> Tensor:
        """Which rows a stop string has just ended, (L,) bool.

        Args:
            live: (L,) the numbers of the rows in the batch.
            token: (L,) their newest tokens.
            tokens: (B, T) the tokens of all rows of the batch.
            length: how many of them are sampled.
        """
        ended = self.table[self.kinds[live], token]
        for place in ended.nonzero()[:, 0].tolist():
            row = int(live[place])
            how = self.samplings[row]
            ended[place] = self.texts.cut(tokens[row, :length].tolist(), how.stop, how.min_tokens) is not None
        return ended
