"""Checkpoints: one file that holds all that a run needs to continue with the same bits.

The weights, the optimiser's state, the step, and how far metrics.jsonl had come. There is nothing else: the order of
the data, the learning rate and the random numbers of a step are functions of the seed and the step.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prefdata.disk import refused, sync_folder
from prefdata.errors import StorageError


def write(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Replace the checkpoint at `path`, atomically.

    Args:
        path: the checkpoint.
        model: what is trained.
        optimizer: by what.
        state: whatever else the loop needs, as JSON values.

    Raises:
        StorageError: the disk refused; the checkpoint before it is still there.
    """
    tensors = {f"model.{name}": tensor for name, tensor in _weights(model).items()}
    for number, slots in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{number}.{slot}": tensor for slot, tensor in slots.items()})
    temporary = path.with_name(f"_tmp-{os.getpid()}-{path.name}")
    with refused(path):
        try:
            save_file(tensors, temporary, metadata={"state": json.dumps(state)})
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.rename(path)
            sync_folder(path.parent)
        except SafetensorError as error:
            raise StorageError(f"cannot write the checkpoint {path} ({error}). Free some space.") from None
        finally:
            temporary.unlink(missing_ok=True)


def read(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Restore the checkpoint at `path` into `model` and `optimizer`; returns its state, or None where there is none."""
    if not path.exists():
        return None
    slots: dict[int, dict[str, Tensor]] = {}
    with safe_open(path, framework="pt") as file, torch.no_grad():
        for name, weight in _weights(model).items():
            weight.copy_(file.get_tensor(f"model.{name}"))
        for key in file.keys():  # noqa: SIM118 (a safetensors handle is no dict)
            kind, _, rest = key.partition(".")
            if kind == "optimizer":
                number, slot = rest.split(".")
                slots.setdefault(int(number), {})[slot] = file.get_tensor(key)
        state: dict[str, Any] = json.loads(file.metadata()["state"])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
    return state


def _weights(model: nn.Module) -> dict[str, Tensor]:
    # Parameters and buffers by name; tied weights appear once.
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
