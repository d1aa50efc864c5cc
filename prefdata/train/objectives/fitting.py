"""Selection of the examples that a loss can use: comparable responses, supported weights, mismatched responses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prefdata.errors import UsageError
from prefdata.ids import seed as seed_of
from prefdata.train.batches import Example
from prefdata.train.objectives.registry import Loss


def fit(
    examples: Sequence[Example], loss: Loss, seed: int, max_length: int | None, dropped: Counter[str]
) -> list[Example]:
    """Keep the examples that a loss can learn from, and add what it needs.

    Args:
        examples: the data.
        loss: its entry in the registry.
        seed: the seed of the mismatched responses.
        max_length: maximum tokens of a prompt with a response.
        dropped: counts of dropped examples by reason, updated in place.

    Raises:
        UsageError: the examples have weights, and the loss does not support them.
    """
    if not loss.weighted and any(example.weight != 1 for example in examples):
        raise UsageError(
            f"--loss {loss.name} compares sorted values over the examples of a batch, so examples cannot have weights: "
            "leave out the data's column weight, or choose another loss."
        )
    kept = []
    for example in examples:
        if reason := _useless(example, loss):
            dropped[reason] += 1
        else:
            kept.append(example)
    return mismatched(kept, seed, max_length) if (loss.command, loss.name) == ("kto", "kto") else kept


def _useless(example: Example, loss: Loss) -> str | None:
    if loss.data != "groups":
        return None
    if len(example.responses) < 2:
        return "one_response"
    return "all_tied" if loss.ranks and len({ratings[0] for ratings in example.ratings or ()}) < 2 else None


def mismatched(examples: Sequence[Example], seed: int, max_length: int | None) -> list[Example]:
    """Add to each example the response to another prompt, from which KTO estimates its KL.

    Partners are seeded, one per example, and no response is used twice if prompts are distinct. If all examples have
    the same prompt, no response is added.
    """
    prompts = [example.prompt.tobytes() for example in examples]
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    drawn = np.random.Generator(np.random.PCG64(seed_of(seed, "mismatched"))).permutation(len(numbers))
    # Equal prompts are adjacent; a partner that is as many places on as the largest such group has another prompt.
    places = sorted(range(len(examples)), key=lambda place: int(drawn[numbers[prompts[place]]]))
    shift = max(Counter(prompts).values(), default=0)
    out = list(examples)
    for at, place in enumerate(places):
        ahead = (places[(at + shift + more) % len(places)] for more in range(len(places)))
        partner = next((other for other in ahead if prompts[other] != prompts[place]), None)
        if partner is not None:
            out[place] = beside(examples[place], examples[partner], max_length)
    return out


def beside(example: Example, other: Example, max_length: int | None) -> Example:
    """Add the other's response to the example as its second, cut where the two are too long together."""
    room = len(other.responses[0]) if max_length is None else max_length - len(example.prompt)
    trained = None
    if example.trained is not None or other.trained is not None:
        trained = (_trained(example), _trained(other)[:room])
    return replace(example, responses=(example.responses[0], other.responses[0][:room]), trained=trained)


def _trained(example: Example) -> np.ndarray:
    return np.ones(len(example.responses[0]), dtype=bool) if example.trained is None else example.trained[0]
