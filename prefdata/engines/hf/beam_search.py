"""Beam search, plain and diverse: the most probable responses to a prompt, not samples (RRHF's BP and DP candidates).

A prompt's beams are in groups: plain search is one group of N beams, diverse search N groups of one. At each step a
group takes the best continuations of its beams by the sum of ln p; in diverse search a continuation's score is lowered
by the diversity penalty for every earlier group that took the same token at this step (Vijayakumar et al. 2018,
section 3, with Hamming diversity). Finished responses are compared by the sum of ln p divided by the number of tokens,
the end token included (transformers' `length_penalty` 1), and a group is done when its best unfinished beam is by that
measure no better than the worst of its finished ones, of which it keeps as many as it has beams (transformers'
`early_stopping=False`); a group of one with its first finished response. The diversity penalty affects the choice of
tokens, not the scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prefdata.engines.hf.batch_state import BatchState, WholeRows
from prefdata.engines.hf.penalties import Penalties
from prefdata.engines.protocol import Request, Sampling, room
from prefdata.engines.stop_strings import StopStrings


@dataclass(frozen=True, slots=True)
class BeamRequest:
    """A request for the most probable responses to one prompt.

    Attributes:
        keys: the caller's names for them, the best first; as many beams are searched.
        prompt_ids: the rendered prompt.
        sampling: max_tokens, min_tokens, penalties, stop and logprobs as in sampling; a temperature that is neither 0
            nor 1 divides the logits; top-p, top-k and min-p are not used in a search.
        diversity_penalty: of diverse beam search; None for plain beams.
    """

    keys: tuple[str, ...]
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    diversity_penalty: float | None

    def asked(self) -> list[Request]:
        """Return a request for each of the responses."""
        return [Request(key, self.prompt_ids, 0, self.sampling) for key in self.keys]


@dataclass(frozen=True, slots=True)
class Beam:
    """A response in progress or finished.

    Attributes:
        score: sum of ln p after penalties and temperature, by which beams are compared.
        token_ids: so far.
        logprobs: ln p of each token under the model itself.
    """

    score: float
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """The score a token."""
        return self.score / len(self.token_ids)

    def grown(self, score: float, token: int, logprob: float) -> Beam:
        """Return the beam with one more token."""
        return Beam(score, (*self.token_ids, token), (*self.logprobs, logprob))


@dataclass
class BeamGroup:
    """The beams of one prompt that compete with each other.

    Attributes:
        open: unfinished beams, the best first; at most `size`.
        finished: finished beams, the best first; at most `size`.
        done: whether the search is over.
    """

    size: int
    open: list[Beam]
    finished: list[Beam] = field(default_factory=list)
    done: bool = False

    def close(self, ended: list[Beam], going: list[Beam]) -> None:
        """Take the beams of a step: those of the best `size` that ended, and the best `size` that continue."""
        # Python sorts stably: of equal scores the earlier one stays in front.
        self.finished = sorted([*self.finished, *ended], key=lambda beam: -beam.mean)[: self.size]
        self.open = going
        full = len(self.finished) == self.size
        # A group of one follows its best continuation alone, which a diversity penalty may have put in front.
        self.done = not going or (full and (self.size == 1 or going[0].mean <= self.finished[-1].mean))


@torch.inference_mode()
def search(
    batch_state: type[BatchState] | type[WholeRows],
    net: Any,
    requests: Sequence[BeamRequest],
    ends: Tensor,
    stops: StopStrings,
    context_length: int,
) -> list[list[Beam]]:
    """Search the beams of each request, the best first; fewer than asked for where no more exist.

    Args:
        batch_state: the class that computes the rows of `net`.
        net: the network.
        requests: with the same number of keys, and all plain or all diverse.
        ends: the tokens that end a response.
        stops: finds stop strings.
        context_length: maximum tokens of prompt and response together.
    """
    beams, plain = len(requests[0].keys), requests[0].diversity_penalty is None
    groups = [
        [BeamGroup(beams, [Beam(0.0)])] if plain else [BeamGroup(1, [Beam(0.0)]) for _ in range(beams)]
        for _ in requests
    ]
    each = [request for request in requests for _ in range(beams)]
    prompts = [request.prompt_ids for request in each]
    rows = batch_state(net, prompts, context_length)
    penalties = Penalties.of([r.sampling for r in each], prompts, ends, rows.logits.shape[-1])
    step = _Step(requests, beams, frozenset(ends.tolist()), stops, context_length)
    live = list(range(len(requests)))
    while live:
        penalised = None if penalties is None else penalties(rows.logits, step.number)
        chosen = step.take([groups[i] for i in live], live, rows.logits, penalised)
        keep = [place for place, i in enumerate(live) if not all(group.done for group in groups[i])]
        live = [live[place] for place in keep]
        if live:
            parents = torch.tensor([p for place in keep for p, _ in chosen[place]], device=rows.logits.device)
            tokens = torch.tensor([token for place in keep for _, token in chosen[place]], device=parents.device)
            if parents.tolist() != list(range(len(rows.logits))):
                rows.select(parents)
                penalties = None if penalties is None else penalties.rows(parents)
            if penalties is not None:
                penalties.note(tokens)
            rows.append(tokens)
        step.number += 1
    return [sorted((b for g in own for b in g.finished), key=lambda beam: -beam.mean) for own in groups]


@dataclass
class _Step:
    """What a step of the search needs in addition to the beams; `number` counts from 0."""

    requests: Sequence[BeamRequest]
    beams: int
    ends: frozenset[int]
    stops: StopStrings
    context_length: int
    number: int = 0

    def take(
        self, groups: list[list[BeamGroup]], live: list[int], logits: Tensor, penalised: Tensor | None
    ) -> list[list[tuple[int, int]]]:
        """Move all groups on by one token; returns (row, token) of the next step's rows, `beams` per prompt."""
        asked = [self.requests[i] for i in live]
        raw = logits.double().log_softmax(-1).view(len(live), self.beams, -1)
        wanted = raw if penalised is None else penalised.view_as(raw)
        temperature = [request.sampling.temperature or 1.0 for request in asked]
        logp = (wanted / raw.new_tensor(temperature)[:, None, None]).log_softmax(-1)
        penalty = raw.new_tensor([request.diversity_penalty or 0.0 for request in asked])
        lowering = torch.zeros_like(raw[:, 0])
        chosen: list[list[tuple[int, int]]] = [[] for _ in live]
        size = groups[0][0].size
        for number in range(len(groups[0])):
            own = slice(number * size, (number + 1) * size)
            ranked = self._ranked([group[number] for group in groups], logp[:, own], raw[:, own], lowering)
            for place, (request, moved) in enumerate(zip(asked, ranked, strict=True)):
                row = place * self.beams + number * size
                if moved:
                    lowering[place, moved[0][1].token_ids[-1]] += penalty[place]
                on = self._go_on(groups[place][number], request, moved)
                chosen[place] += [(row + parent, token) for parent, token in on]
        return chosen

    def _ranked(
        self, groups: list[BeamGroup], logp: Tensor, raw: Tensor, lowering: Tensor
    ) -> list[list[tuple[int, Beam]]]:
        """Rank the continuations of each group's beams (the beam's number, and the continuation), the best first.

        Args:
            groups: one of each of P prompts.
            logp: (P, size, V), by which beams are compared.
            raw: (P, size, V), under the model itself.
            lowering: (P, V), subtracted when continuations are chosen.
        """
        prompts, size, vocabulary = logp.shape
        scores = [[beam.score for beam in group.open] + [-math.inf] * (size - len(group.open)) for group in groups]
        total = logp + logp.new_tensor(scores)[:, :, None]
        many = min(size * max(2, 1 + len(self.ends)), size * vocabulary)  # enough that `size` of them do not end
        order = (total - lowering[:, None]).view(prompts, -1).topk(many, dim=-1).indices
        found = [values.reshape(prompts, -1).gather(-1, order).tolist() for values in (total, raw)]
        return [
            [
                (at // vocabulary, group.open[at // vocabulary].grown(score, at % vocabulary, own))
                for at, score, own in zip(*row, strict=True)
                if score > -math.inf and not group.done
            ]
            for group, *row in zip(groups, order.tolist(), *found, strict=True)
        ]

    def _go_on(self, group: BeamGroup, request: BeamRequest, moved: list[tuple[int, Beam]]) -> list[tuple[int, int]]:
        """Close the group's step; returns (beam, token) of those that continue, padded with unused ones."""
        over = self.number + 1 >= room(request.asked()[0], self.context_length)
        ended = [over or self._ended(beam, request.sampling) for _, beam in moved]
        going = [one for one, end in zip(moved, ended, strict=True) if not end][: group.size]
        if not group.done:
            finished = [beam for (_, beam), end in zip(moved[: group.size], ended, strict=False) if end]
            group.close(finished, [beam for _, beam in going])
        on = [(parent, beam.token_ids[-1]) for parent, beam in going]
        return on + [(0, 0)] * (group.size - len(on))

    def _ended(self, beam: Beam, sampling: Sampling) -> bool:
        token, stop = beam.token_ids[-1], tuple(filter(None, sampling.stop))
        if token in self.ends:
            return True
        suspect = self.stops.suspects(stop)[token] if stop else False
        return suspect and self.stops.cut(beam.token_ids, stop, sampling.min_tokens) is not None
