"""What a training takes of a device's memory, before it is begun: from a config, without weights.

The model is built and run on fake tensors, which have sizes and no numbers, so that what its layers keep for the
backward pass is counted and not guessed. From there on the estimate is a function of numbers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from prefdata.models.files import ModelFiles
from prefdata.models.loading import attention_settings
from prefdata.train.adapter import add_adapter
from prefdata.train.adapter_specs import AdapterSpec
from prefdata.train.attention import PACKED_ATTENTION, Packing, Span
from prefdata.train.logps import CHUNK_ELEMENTS
from prefdata.train.precision import Precision

PROBE_TOKENS = 64
"""Tokens of the shorter of two passes; what a token takes is the difference of the two."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What the estimate needs to know of a model, in a precision, with an adapter or without.

    Attributes:
        parameters: all of them.
        trained: those that are trained.
        weight_bytes: bytes of all parameters.
        trained_bytes: bytes of those that are trained.
        layers: how many there are.
        hidden: width of the hidden states.
        stream_bytes: bytes of one number of the hidden states.
        kept: bytes that all layers together keep for the backward pass, a token.
        casts: bytes of weights in the type of matrix products, where that is another one.
        vocabulary: rows of the head of a causal LM; 0 of a reward model.
        head_bytes: bytes of the gradient of the head, where it is trained.
    """

    parameters: int
    trained: int
    weight_bytes: int
    trained_bytes: int
    layers: int
    hidden: int
    stream_bytes: int
    kept: float
    casts: float
    vocabulary: int
    head_bytes: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by part, at the peak of a step.

    Attributes:
        weights: the model, and its weights as matrix products read them.
        gradients: of what is trained.
        optimiser: AdamW's two moments.
        activations: what layers and head keep and compute for one micro-batch.
        reference: a second model beside the one that is trained.
    """

    weights: float
    gradients: float
    optimiser: float
    activations: float
    reference: float

    @property
    def total(self) -> float:
        """All of them."""
        return float(sum(asdict(self).values()))


def estimate(
    size: ModelSize, tokens: int, predicted: int | None = None, *, checkpointing: bool = False, copies: int = 0
) -> Memory:
    """Estimate the memory of a step at its peak, which is where the forward pass ends and the backward pass begins.

    Args:
        size: the model.
        tokens: of the largest micro-batch.
        predicted: those of them that the loss reads; all of them unless given.
        checkpointing: whether layers are computed again in the backward pass.
        copies: second models: 1 where the reference follows the policy or the loss reads its distributions.
    """
    predicted = tokens if predicted is None else predicted
    layer = size.kept / size.layers * tokens
    rows = min(predicted, max(1, CHUNK_ELEMENTS // size.vocabulary)) if size.vocabulary else 0
    table = 4 * rows * size.vocabulary  # float32
    # Forward the logits and their table; backward the table, its copy in the type of products, the head's gradient.
    head = max(2 * table, 1.5 * table + size.head_bytes) + 2 * predicted * size.hidden * size.stream_bytes
    states = size.layers * tokens * size.hidden * size.stream_bytes
    activations = states + max(head, 1.5 * layer) if checkpointing else size.kept * tokens + max(head, layer / 2)
    return Memory(
        weights=size.weight_bytes + size.casts,
        gradients=size.trained_bytes,
        optimiser=2 * size.trained_bytes,
        activations=activations,
        reference=copies * size.weight_bytes,
    )


def model_size(config: Any, files: ModelFiles, spec: AdapterSpec, precision: Precision, *, scores: bool) -> ModelSize:
    """Measure a model that need not exist: by its config, on fake tensors.

    Args:
        config: transformers' config.
        files: what an adapter names.
        spec: its settings.
        precision: of the training.
        scores: whether it is a reward model.
    """
    auto: Any = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    dtype = precision.weights if spec.lora_r is None else precision.frozen
    with torch.device("meta"):
        model = auto.from_config(config, dtype=dtype, **attention_settings(config)).eval()
    layers = _layers(model)
    if spec.lora_r is not None:
        add_adapter(model, spec, files, precision.weights)
    with FakeTensorMode():
        _put_on_cpu(model)
        one, two = (_kept_bytes(model, precision, factor * PROBE_TOKENS) for factor in (1, 2))
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    head = None if scores else model.get_output_embeddings().weight
    kept = (two - one) / PROBE_TOKENS
    casts = max(0.0, one - kept * PROBE_TOKENS)
    if head is not None and precision.products not in (None, head.dtype):
        casts += head.numel() * torch.bfloat16.itemsize
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in parameters),
        trained=sum(parameter.numel() for parameter in trained),
        weight_bytes=_bytes(parameters),
        trained_bytes=_bytes(trained),
        layers=layers,
        hidden=model.get_input_embeddings().weight.shape[1],
        stream_bytes=dtype.itemsize,
        kept=kept,
        casts=casts,
        vocabulary=0 if head is None else int(head.shape[0]),
        head_bytes=_bytes([head]) if head is not None and head.requires_grad else 0,
    )


def _put_on_cpu(model: nn.Module) -> None:
    """Give a model of the meta device tensors of a CPU, which has autocast; inside of a fake mode they are fake."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                like = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(like, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _bytes(tensors: list[Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _layers(model: nn.Module) -> int:
    """Return the length of the longest list of modules."""
    return max((len(module) for module in model.modules() if isinstance(module, nn.ModuleList)), default=1)


def _kept_bytes(model: Any, precision: Precision, tokens: int) -> int:
    """Bytes that the trunk keeps for the backward pass of so many tokens, weights aside."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    more: dict[str, Any] = {}
    if model.config._attn_implementation == PACKED_ATTENTION:
        more["packing"] = Packing((Span(0, 0, (tokens,)),))
    autocast = torch.autocast("cpu", dtype=precision.products, enabled=precision.products is not None)
    with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ids = torch.zeros(1, tokens, dtype=torch.long)
        model.base_model(input_ids=ids, position_ids=torch.arange(tokens)[None], use_cache=False, **more)
    return sum(size for place, size in kept.items() if place not in weights)
