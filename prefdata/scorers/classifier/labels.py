"""Which of a classifier's labels are scores, and as what: raw logits, or probabilities.

A reward model has one label, and its score is that label's logit. A classifier has several: `all` makes every label an
output of its own (the attributes of a multi-objective reward model), a name or a number takes one (`POSITIVE` of a
sentiment classifier). A probability is the softmax over the labels, or the sigmoid where there is one label or where
several may hold at once (`problem_type: multi_label_classification`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from torch import Tensor

from prefdata.errors import ModelError, UsageError, did_you_mean
from prefdata.models.files import ModelFiles, label_names

Activation = Literal["logit", "probability"]

ALL = "all"


@dataclass(frozen=True)
class Labels:
    """The labels that are read.

    Attributes:
        outputs: the names of the scorer's outputs; `("",)` where there is one.
        columns: the label of each output.
        activation: what is read of a label.
        exclusive: whether exactly one label holds, so that a probability is a softmax.
    """

    outputs: tuple[str, ...]
    columns: tuple[int, ...]
    activation: Activation
    exclusive: bool

    @classmethod
    def of(cls, files: ModelFiles, label: str | None, activation: Activation) -> Self:
        """Return the labels that `label` selects: None for a model's only one, `all`, a name, or a number from 0.

        Raises:
            ModelError: the model has several labels and none is named.
            UsageError: the model has no such label, or two of one name.
        """
        names = label_names(files.config)
        exclusive = len(names) > 1 and files.config.get("problem_type") != "multi_label_classification"
        if label is None:
            if len(names) != 1:
                raise ModelError(
                    f"{files.name} has {len(names)} labels ({_some(names)}), and a reward model has one. "
                    "Name one with --label, or take them all with --label all."
                )
            return cls(("",), (0,), activation, exclusive)
        if label == ALL and ALL not in names:
            if len(set(names)) < len(names):
                raise UsageError(f"{files.name} has two labels of one name ({_some(names)}). Take one by its number.")
            return cls(names, tuple(range(len(names))), activation, exclusive)
        return cls(("",), (_column(files.name, names, label),), activation, exclusive)

    def read(self, logits: Tensor) -> Tensor:
        """Select the outputs from a model's logits: shape (rows, labels) to (rows, outputs), float32."""
        logits = logits.float()
        if self.activation == "probability":
            logits = logits.softmax(-1) if self.exclusive else logits.sigmoid()
        return logits[:, list(self.columns)]


def _column(model: str, names: tuple[str, ...], label: str) -> int:
    if names.count(label) == 1:
        return names.index(label)
    if label.isdecimal() and int(label) < len(names):
        return int(label)
    raise UsageError(f"{model} has no label {label!r} (it has {_some(names)}).{did_you_mean(label, names)}")


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
