"""Load a network: device, type, weights and LoRA adapters, for engines, scorers and the trainer alike."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open

from prefdata.errors import ModelError, UsageError
from prefdata.models.adapters import CONFIG, PREFIX, WEIGHTS
from prefdata.models.files import ModelFiles, label_names
from prefdata.models.gpus import has_gpu

log = logging.getLogger("prefdata.models")

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: str | None) -> torch.device:
    """Return the device asked for, or the first CUDA GPU, or the CPU; a GPU that torch cannot use is a warning.

    Raises:
        UsageError: there is no such device on this machine.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        if has_gpu():
            _warn_once(
                f"{_why_no_cuda()} Computing on the CPU, which is far slower; --device cpu says that it is meant."
            )
        return torch.device("cpu")
    try:
        picked = torch.device(device)
    except RuntimeError:
        raise UsageError(f"--device should be cpu, cuda, cuda:1, …, not {device!r}.") from None
    try:
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError) as error:
        problem = str(error).splitlines()[0].rstrip(".")
        why = f"{_why_no_cuda()} Or use" if picked.type == "cuda" and has_gpu() else f"{problem}. Use"
        raise UsageError(f"--device {device}: {why} --device cpu.") from None
    return picked


def _why_no_cuda() -> str:
    """Say why torch computes on no GPU although the driver lists one, and what to do."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} cannot use this machine's NVIDIA GPU. Install a build of it for CUDA."
    return (
        f"torch {torch.__version__} cannot use this machine's NVIDIA GPU: its driver may be older than CUDA "
        f"{torch.version.cuda} needs. Update the driver, or install a build of torch for an older CUDA."
    )


@cache
def _warn_once(message: str) -> None:
    log.warning(message)


def computed(device: torch.device, dtype: str) -> dict[str, str]:
    """Describe what numbers are computed in and on, as reports and lineages keep it: `dtype` and `device`."""
    card = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return {"dtype": dtype, "device": f"{device}{card}"}


def pick_dtype(dtype: str, device: torch.device) -> str:
    """Return the name of the type asked for; `auto` is bfloat16 on a GPU that computes in it, else float32.

    Raises:
        UsageError: there is no such type here.
    """
    if dtype == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if native else "float32"
    if dtype not in _DTYPES:
        raise UsageError(f"--dtype should be auto, {', '.join(_DTYPES)}, not {dtype!r}.")
    return dtype


def load(auto_class: Any, model: ModelFiles, dtype: str, device: torch.device) -> Any:
    """Load the network of `model` from safetensors, ready for inference; errors as in `read_weights`."""
    return read_weights(auto_class, model, _DTYPES[dtype]).to(device).eval()


def head_in_float32(net: Any) -> None:
    """Compute the head of a classifier in float32, whatever the type of the rest: in bfloat16 scores become equal."""

    def widened(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(arg.float() if torch.is_tensor(arg) and arg.is_floating_point() else arg for arg in args)

    for part in net.children():
        if part is not net.base_model:
            part.float().register_forward_pre_hook(widened)


def read_config(model: ModelFiles) -> Any:
    """Read the model's config as transformers has it; a padding token that the model does not know is left out.

    Raises:
        ModelError: transformers cannot make a network of it.
    """
    try:
        with silenced():
            config = transformers.AutoConfig.from_pretrained(model.folder(), trust_remote_code=False)
    except Exception as error:
        raise _load_error(model, error) from error
    if model.adapter is not None and model.architecture.endswith("ForSequenceClassification"):
        config.num_labels = len(label_names(model.config))  # the adapter may bring the head
    for part in (config, config.get_text_config()):
        pad, vocabulary = getattr(part, "pad_token_id", None), getattr(part, "vocab_size", None)
        if isinstance(pad, int) and isinstance(vocabulary, int) and not 0 <= pad < vocabulary:
            part.pad_token_id = None  # padding is masked, and the embedding has no such row
    return config


def attention_settings(config: Any) -> dict[str, str]:
    """Return the setting of `from_pretrained` by which attention computes all that the config asks for."""
    # transformers' scaled dot-product attention leaves out the cap that Gemma 2 puts on attention's logits.
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return {"attn_implementation": "eager"} if capped else {}


def padding_id(tokenizer: Any, net: Any) -> int:
    """Return the token id that fills rows: the network's, else the tokenizer's, else 0; one that has an embedding."""
    rows = int(net.get_input_embeddings().num_embeddings)
    for pad in (net.config.get_text_config().pad_token_id, tokenizer.pad_token_id):
        if isinstance(pad, int) and 0 <= pad < rows:
            return pad
    return 0


def _load_error(model: ModelFiles, error: Exception) -> ModelError:
    return ModelError(f"cannot load {model.name}: {' '.join(str(error).split()) or type(error).__name__}.")


def read_weights(auto_class: Any, model: ModelFiles, dtype: torch.dtype, *, new: str = "", config: Any = None) -> Any:
    """Load the network of `model` with every one of its weights taken from the files; an adapter is merged into it.

    Args:
        auto_class: which of transformers' classes loads it.
        model: what `identify` found.
        dtype: of the weights.
        new: the module whose weights may be missing, because the caller initialises it: a reward model's new head.
        config: the config to use instead of the model's own.

    Raises:
        ModelError: transformers cannot load it, or tensors are missing, have another shape, or belong to its layers
            and are not used.
    """
    config = read_config(model) if config is None else config
    try:
        with silenced():
            net, found = auto_class.from_pretrained(
                model.folder(),
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                config=config,
                **attention_settings(config),
            )
    except Exception as error:
        raise _load_error(model, error) from error
    _check_complete(net, found, model, new)
    # PEFT freezes what it puts an adapter on.
    return net if model.adapter is None else merge_adapter(net, model.adapter).requires_grad_(True)


def _check_complete(net: Any, found: dict[str, Any], model: ModelFiles, new: str) -> None:
    """Compare the tensors of the files with those of the network.

    Raises:
        ModelError: they differ in what the network computes with.
    """
    brought = set() if model.adapter is None else _brought(model.adapter)
    missing = [name for name in sorted(found["missing_keys"]) if name not in brought]
    missing = [name for name in missing if not new or not name.startswith(f"{new}.")]
    unused = sorted(found["unexpected_keys"])
    within = [name for name in unused if name.startswith(f"{net.base_model_prefix}.")]
    kind = type(net).__name__
    if missing:
        hint = f" They hold {_listed(unused)}, which it does not have." if unused else ""
        raise ModelError(
            f"the weights of {model.name} lack {_listed(missing)} of a {kind}.{hint} Save or fetch the model again."
        )
    if shapes := sorted(found["mismatched_keys"]):
        name, stored, wanted = shapes[0]
        raise ModelError(
            f"the weights of {model.name} do not fit its config.json: {name} is {_size(stored)} and should be "
            f"{_size(wanted)} ({_count(len(shapes), 'such tensor')}). Save or fetch the model again."
        )
    if within:
        raise ModelError(
            f"the weights of {model.name} hold {_listed(within)} in the layers of a {kind}, which has no place for "
            "them, so it would compute something else than the model that was saved. Check architectures and sizes in "
            "its config.json, or merge adapters and dequantise first."
        )
    if not new and unused:
        log.warning("%s: %s of its files do not belong to a %s and are not used.", model.name, _listed(unused), kind)


def _brought(adapter: Path) -> set[str]:
    """Return the tensors that an adapter holds whole, such as a reward model's head, by the model's names for them."""
    with safe_open(adapter / WEIGHTS, framework="pt") as file:
        return {name.removeprefix(PREFIX) for name in file.keys()}  # noqa: SIM118


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{_count(len(names), 'tensor')} ({', '.join(names[:most])}{more})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


@contextmanager
def silenced() -> Iterator[None]:
    """Keep transformers' own messages and progress bars off the terminal."""
    # What is missing or unused is checked and reported here; transformers' own tables and bars repeat it.
    hf_logging: Any = transformers.utils.logging
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def merge_adapter(net: Any, folder: Path) -> Any:
    """Return `net` with an adapter in PEFT's format (LoRA, rsLoRA, DoRA, …) merged into its weights, by PEFT.

    Raises:
        UsageError: PEFT is not installed.
        ModelError: there is no such adapter, it does not fit the model, or it cannot be merged.
    """
    try:
        from peft import PeftConfig, PeftModel
    except ImportError:
        raise UsageError("an adapter needs PEFT. Install it (pip install 'prefdata[lora]').") from None
    # PEFT would take a pickle where there are no safetensors.
    if lacking := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        raise ModelError(f"{folder} is not an adapter: it has no {lacking[0]}. Save it with PEFT (save_pretrained).")
    try:
        with warnings.catch_warnings(action="ignore"):  # relevant problems are errors here
            return _merged(net, PeftConfig.from_pretrained(str(folder), inference_mode=True), PeftModel, folder)
    except ModelError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")[:300]
        raise ModelError(f"cannot merge the adapter {folder}: {type(error).__name__}: {reason}.") from error


def _merged(net: Any, config: Any, peft_model: Any, folder: Path) -> Any:
    tied = net.get_input_embeddings().weight if _is_tied(net) else None
    adapted = peft_model(net, config)
    loaded = adapted.load_adapter(str(folder), "default", torch_device=str(next(net.parameters()).device))
    if keys := loaded.missing_keys:
        raise ModelError(f"the adapter {folder} lacks {keys[0]}. Is it another model's?")
    if keys := loaded.unexpected_keys:
        raise ModelError(f"the adapter {folder} does not belong to this model: {keys[0]}. Is it another model's?")
    _refuse_tied(adapted, tied, folder)
    return adapted.merge_and_unload(safe_merge=True)


def _is_tied(net: Any) -> bool:
    """Whether a causal model's head has the weights of its input embeddings."""
    head = net.get_output_embeddings()
    return head is not None and head.weight is net.get_input_embeddings().weight


def _refuse_tied(adapted: Any, tied: Any, folder: Path) -> None:
    """Refuse an adapter on weights that the model uses twice: merged, it would change both uses."""
    for name, module in adapted.named_modules():
        if hasattr(module, "get_base_layer") and tied is not None and module.get_base_layer().weight is tied:
            raise ModelError(
                f"the adapter {folder} changes {name.removeprefix('base_model.model.')}, whose weights the model uses "
                "twice. Save the model with weights of its own for both, and train the adapter on that."
            )
