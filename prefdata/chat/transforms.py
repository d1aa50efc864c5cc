"""Prompt transforms: the model sees another prompt for sampling than the one that is scored and trained on.

Every prompt is stored in its train view; a candidate that saw another one stores it with its response. Two methods:

Context distillation (Askell et al. 2021, 2112.00861; Llama 2, 2307.09288, section 4.2.4): the model is given something
more, a preprompt, and trained to answer so without it. With several preprompts each candidate draws one by weight.

Ghost Attention (Llama 2, section 3.3): an instruction occurs once, in the first user turn, where it is trained on, and
on every user turn, in full, where it is sampled. `Instructions.train_view` puts it there, `PromptTransform` repeats it.

Preprompts and instructions are YAML files; the built-in ones are in `templates/` and are chosen by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from prefdata.chat.data_files import read_template
from prefdata.errors import InputError, UsageError
from prefdata.ids import digest, unit_uniform, without_nulls
from prefdata.specs import SampleSpec, Spec, identity_field, runtime_field

INSTRUCTION = "instruction"
"""The key of a prompt's metadata for its instruction: {"said": as trained on, "sampled": as repeated when sampling}."""

Turns = list[dict[str, Any]]


class Preprompt(Spec):
    """One entry of a file of preprompts; an empty text means none."""

    step: ClassVar[str] = "preprompt"
    may_be_empty: ClassVar[tuple[str, ...]] = ("text",)

    text: str = identity_field(..., "The text that the model is given.")
    weight: float = identity_field(1.0, "Relative probability.", gt=0, allow_inf_nan=False)
    place: Literal["system", "user"] = identity_field("system", "In the system message, or before the last user turn.")
    name: str | None = runtime_field(None, "For the reader only.")

    def put_into(self, turns: Turns) -> Turns:
        """Put this preprompt into a conversation: before the existing content, a blank line between."""
        if not self.text:
            return turns
        if self.place == "user":
            last = max(place for place, turn in enumerate(turns) if turn["role"] == "user")
            return [*turns[:last], _before(self.text, turns[last]), *turns[last + 1 :]]
        if turns[0]["role"] == "system":
            return [_before(self.text, turns[0]), *turns[1:]]
        return [{"role": "system", "content": self.text}, *turns]


class Instruction(Spec):
    """One instruction of a file: its full form, and the short one where it has one."""

    step: ClassVar[str] = "instruction"

    text: str = identity_field(..., "The instruction in full.", pattern=r"\S")
    short: str | None = identity_field(None, "The instruction in few words.", pattern=r"\S")
    weight: float = identity_field(1.0, "Relative probability.", gt=0, allow_inf_nan=False)


@dataclass(frozen=True)
class InstructionCombination:
    """Lists of instructions, of which some are combined; a single instruction is one list of one."""

    lists: tuple[tuple[Instruction, ...], ...]
    weight: float = 1.0


@dataclass(frozen=True)
class PromptTransform:
    """The transform of a prompt for sampling."""

    preprompts: tuple[Preprompt, ...] = ()
    ghost_attention: bool = False

    @classmethod
    def of(cls, spec: SampleSpec) -> PromptTransform:
        """Return the transform for a spec.

        Raises:
            UsageError: there are no preprompts of that name, or an entry is not valid; with its number.
            InputError: the file is not YAML, or not a list.
        """
        if spec.preprompts is None:
            return cls(ghost_attention=spec.ghost_attention)
        where, entries = _entries("preprompts", spec.preprompts)
        parsed = (Preprompt.parse(_keys(entry, at), where=at) for entry, at in _placed(where, entries))
        return cls(tuple(parsed), spec.ghost_attention)

    @property
    def identity(self) -> dict[str, Any]:
        """What the transform adds to the sampler's lineage: the preprompts by content, not by their file's path."""
        return {"preprompts": digest([entry.identity() for entry in self.preprompts])} if self.preprompts else {}

    @property
    def varies(self) -> bool:
        """Whether candidates of one prompt may see different prompts."""
        return len(self.preprompts) > 1

    def messages(self, prompt: Mapping[str, Any], uniform: float) -> Turns | None:
        """Return what the model sees of a row of the prompts table, or None where that is the prompt unchanged.

        `uniform` in (0, 1) is the candidate's own random number.

        Raises:
            InputError: the metadata name an instruction that the first user turn does not begin with.
        """
        plain = turns = without_nulls(prompt["messages"])
        if self.ghost_attention and (carried := instruction_of(prompt)):
            turns = _on_every_turn(turns, carried, prompt["prompt_id"])
        if self.preprompts:
            turns = _drawn(self.preprompts, uniform).put_into(turns)
        return None if turns == plain else turns

    def check(self, prompts: Iterable[Mapping[str, Any]]) -> None:
        """Read rows of the prompts table up to the first that the transform changes.

        Raises:
            InputError: Ghost Attention was asked for, and no prompt carries an instruction.
        """
        if self.ghost_attention and not any(instruction_of(prompt) for prompt in prompts):
            raise InputError(
                "--ghost-attention repeats the instruction of a prompt, and no prompt carries one. Put them in with "
                "`prefdata ingest RUN FILE --instructions gatt` (or a YAML file of your own)."
            )


def instruction_of(prompt: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the instruction of a prompt: `said` is in its first user turn, `sampled` is the full form."""
    # A text search first: most prompts have metadata, and parsing every one would take longer than the rest.
    if not prompt["metadata"] or f'"{INSTRUCTION}"' not in prompt["metadata"]:
        return None
    carried = json.loads(prompt["metadata"]).get(INSTRUCTION)
    return carried if isinstance(carried, dict) and {"said", "sampled"} <= carried.keys() else None


def _on_every_turn(turns: Turns, carried: Mapping[str, str], prompt_id: str) -> Turns:
    first = next(place for place, turn in enumerate(turns) if turn["role"] == "user")
    stated = f"{carried['said']}\n\n"
    if not turns[first]["content"].startswith(stated):
        raise InputError(
            f"prompt {prompt_id}: its first user turn does not begin with the instruction that its metadata name "
            f"({carried['said']!r}). Ingest it again with --instructions."
        )
    rest = {**turns[first], "content": turns[first]["content"].removeprefix(stated)}
    bare = [*turns[:first], rest, *turns[first + 1 :]]
    return [_before(carried["sampled"], turn) if turn["role"] == "user" else turn for turn in bare]


@dataclass(frozen=True)
class Instructions:
    """Instructions to draw from: one for each conversation, by its key."""

    choices: tuple[InstructionCombination, ...]

    @classmethod
    def of(cls, name: str) -> Instructions:
        """Read the built-in instructions of that name, or those of a file.

        Raises:
            UsageError: there are none of that name, or an entry is not valid; with its number.
            InputError: the file is not YAML, or not a list.
        """
        where, entries = _entries("instructions", name)
        return cls(tuple(_combination(entry, at) for entry, at in _placed(where, entries)))

    @property
    def identity(self) -> str:
        """The id of their content."""
        entries = [[[entry.identity() for entry in entries] for entries in choice.lists] for choice in self.choices]
        return digest([entries, [choice.weight for choice in self.choices]])

    def draw(self, seed: int, key: str) -> dict[str, str]:
        """Draw the instruction for the conversation `key`: `said`, short for half of the keys; `sampled`, in full."""

        def uniform(*what: str | int) -> float:
            return unit_uniform(seed, "instruction", *what, key)

        lists = _drawn(self.choices, uniform("choice")).lists
        some = 1 + int(uniform("lists") * (2 ** len(lists) - 1))  # its bits say which lists: any but none
        parts = [_drawn(each, uniform("entry", i)) for i, each in enumerate(lists) if some >> i & 1]
        sampled = " ".join(part.text for part in parts)
        short = " ".join(part.short or part.text for part in parts)
        return {"said": short if uniform("short") < 0.5 else sampled, "sampled": sampled}


def training_messages(turns: Turns, instruction: Mapping[str, str]) -> Turns:
    """Put the instruction into a conversation for training: once, in the first user turn, a blank line after it."""
    first = next(place for place, turn in enumerate(turns) if turn["role"] == "user")
    return [*turns[:first], _before(instruction["said"], turns[first]), *turns[first + 1 :]]


def _combination(entry: Any, at: str) -> InstructionCombination:
    keys = _keys(entry, at)
    if "combine" not in keys:
        one = Instruction.parse(keys, where=at)
        return InstructionCombination(((one,),), one.weight)
    named = keys.pop("combine")
    if not isinstance(named, dict) or not named or not all(isinstance(each, list) and each for each in named.values()):
        raise UsageError(f"{at}: combine should hold lists of instructions by name.")
    if unknown := keys.keys() - {"weight"}:
        raise UsageError(f"{at}: a combination has combine and weight, not {', '.join(sorted(unknown))}.")
    weight = Instruction.parse({"text": "-", **keys}, where=at).weight
    lists = [
        tuple(Instruction.parse(_keys(one, place), where=place) for one, place in _placed(f"{at}: {name}", each))
        for name, each in named.items()
    ]
    return InstructionCombination(tuple(lists), weight)


def _before(text: str, turn: Mapping[str, Any]) -> dict[str, Any]:
    return {**turn, "content": f"{text}\n\n{turn['content']}"}


Weighted = TypeVar("Weighted", Preprompt, Instruction, InstructionCombination)


def _drawn(entries: Sequence[Weighted], uniform: float) -> Weighted:
    left = uniform * sum(entry.weight for entry in entries)
    for entry in entries:
        left -= entry.weight
        if left < 0:
            return entry
    return entries[-1]


def _entries(kind: Literal["preprompts", "instructions"], name: str) -> tuple[str, list[Any]]:
    """Read the entries of a file, or of the built-in one of that name; and the name for it in messages."""
    entries = read_template(kind, name)
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{name} should hold a list of {kind}; templates/{kind} has examples to copy.")
    return name, entries


def _placed(where: str, entries: Sequence[Any]) -> Iterable[tuple[Any, str]]:
    return ((entry, f"{where}: entry {number}") for number, entry in enumerate(entries, 1))


def _keys(entry: Any, at: str) -> dict[str, Any]:
    """Return an entry's keys; a plain text is the entry's `text`."""
    if isinstance(entry, str):
        return {"text": entry}
    if not isinstance(entry, dict):
        raise UsageError(f"{at}: should be a text, or keys and values, and is {type(entry).__name__}.")
    return {str(key): value for key, value in entry.items()}
