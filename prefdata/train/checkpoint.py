"""Checkpoints: one file with all that training needs to continue with identical bits.

It holds the weights, the optimiser's state, the step, and the length of metrics.jsonl. No more is needed: the order of
the data, the learning rate and the random numbers of a step are functions of the seed and the step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prefdata.errors import InputError, StorageError
from prefdata.storage.atomic import fsync_dir, storage_errors, temporary_name


def write(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer | None, state: dict[str, Any]
) -> None:
    """Replace the checkpoint at `path`, atomically.

    Args:
        path: the checkpoint.
        modules: the trained model, and a reference that follows it, by name.
        optimizer: the optimiser; None where weights alone are kept.
        state: what else the loop needs, as JSON values.

    Raises:
        StorageError: writing failed; the earlier checkpoint is kept.
    """
    tensors = _weights(modules)
    for number, slots in ({} if optimizer is None else optimizer.state_dict()["state"]).items():
        tensors.update({f"optimizer.{number}.{slot}": tensor for slot, tensor in slots.items()})
    temporary, text = temporary_name(path), json.dumps(state)
    with storage_errors(path):
        try:
            save_file(tensors, temporary, metadata={"state": text, "checksum": _checksum(tensors, text)})
            fsync_dir(temporary)
            temporary.rename(path)
            fsync_dir(path.parent)
        except SafetensorError as error:
            raise StorageError(f"cannot write the checkpoint {path} ({error}). Free some space.") from None
        finally:
            temporary.unlink(missing_ok=True)


def read(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer | None
) -> dict[str, Any] | None:
    """Restore the checkpoint at `path` into `modules` and `optimizer`; returns its state, or None where there is none.

    Raises:
        InputError: the checkpoint is damaged.
    """
    if not path.exists():
        return None
    weights, slots = _weights(modules), dict[int, dict[str, Tensor]]()
    try:
        with safe_open(path, framework="pt") as file, torch.no_grad():
            metadata = file.metadata()
            hashed = xxhash.xxh3_64(metadata["state"].encode())
            for key in sorted(file.keys()):  # one by one, so that memory holds no second copy of the weights
                tensor = file.get_tensor(key)
                _add(hashed, key, tensor)
                if key in weights:
                    weights.pop(key).copy_(tensor)
                else:
                    _, number, slot = key.split(".")
                    slots.setdefault(int(number), {})[slot] = tensor
        sound = hashed.hexdigest() == metadata["checksum"] and not weights
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError):
        sound = False
    if not sound:
        raise InputError(f"the checkpoint {path} is damaged. Remove it; the same command then starts from step 1.")
    if optimizer is not None:
        optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
    state: dict[str, Any] = json.loads(metadata["state"])
    return state


def _checksum(tensors: dict[str, Tensor], state: str) -> str:
    """Compute the checksum of all that a checkpoint holds; it is stored in its header."""
    hashed = xxhash.xxh3_64(state.encode())
    for name in sorted(tensors):
        _add(hashed, name, tensors[name])
    return hashed.hexdigest()


def _add(hashed: xxhash.xxh3_64, name: str, tensor: Tensor) -> None:
    hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    hashed.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)


def _weights(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Tensors by the module's name and their own; tied weights appear once.

    Of a module that is trained they are its buffers and the parameters that change: those under an adapter do not.
    """
    found: dict[str, Tensor] = {}
    for module, net in modules.items():
        trained = any(parameter.requires_grad for parameter in net.parameters())
        kept = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad or not trained}
        found |= {f"{module}.{name}": tensor for name, tensor in (*kept.items(), *net.named_buffers())}
    return found
