"""Names of settings in TRL, Transformers, vLLM, OpenRLHF and earlier versions of prefdata, and our names for them."""

from __future__ import annotations

from collections.abc import Iterable

from prefdata.errors import did_you_mean

OTHER_NAMES: dict[str, tuple[str, ...]] = {
    # Training: transformers.TrainingArguments, TRL, OpenRLHF
    "learning_rate": ("lr",),
    "actor_learning_rate": ("lr",),
    "lr_scheduler_type": ("lr_scheduler",),
    "schedule": ("lr_scheduler",),
    "num_train_epochs": ("epochs",),
    "num_epochs": ("epochs",),
    "max_epochs": ("epochs",),
    "per_device_train_batch_size": ("batch_size",),
    "train_batch_size": ("batch_size",),
    "gradient_accumulation_steps": ("batch_size",),
    "micro_train_batch_size": ("micro_tokens",),
    "per_device_eval_batch_size": ("micro_tokens",),
    "warmup_ratio": ("warmup",),
    "warmup_steps": ("warmup",),
    "lr_warmup_ratio": ("warmup",),
    "adam_beta2": ("beta2",),
    "adam_betas": ("beta2",),
    "max_norm": ("max_grad_norm",),
    "gradient_clipping": ("max_grad_norm",),
    "l2": ("weight_decay",),
    "max_seq_length": ("max_length", "max_model_len"),
    "max_seq_len": ("max_length", "max_model_len"),
    "max_len": ("max_length", "max_model_len"),
    "cutoff_len": ("max_length",),
    "logging_steps": ("log_every",),
    "save_steps": ("save_every",),
    "eval_steps": ("eval_every",),
    "loss_type": ("loss",),
    "label_smoothing_factor": ("label_smoothing",),
    "center_rewards_coefficient": ("center_rewards",),
    "overwrite_output_dir": ("replace",),
    "resume_from_checkpoint": (),
    "report_to": (),
    "use_wandb": (),
    "use_tensorboard": (),
    # Models and data
    "model_name_or_path": ("model", "reward_model"),
    "model_name": ("model", "reward_model"),
    "pretrain": ("model",),
    "base_model": ("model",),
    "reward_pretrain": ("reward_model",),
    "reward_model_path": ("reward_model",),
    "reward_model_name_or_path": ("reward_model",),
    "ref_model": ("reference",),
    "ref_pretrain": ("reference",),
    "reference_model": ("reference",),
    "judge_model": ("judge",),
    "output_dir": ("out", "to"),
    "save_path": ("out", "to"),
    "output": ("out", "to"),
    "bf16": ("dtype",),
    "fp16": ("dtype",),
    "torch_dtype": ("dtype",),
    "param_dtype": ("dtype",),
    "test_size": ("test",),
    "system_prompt": ("system",),
    "max_samples": ("limit",),
    "num_prompts": ("limit",),
    "random_seed": ("seed",),
    "imitation": ("input",),
    "labelling": ("input",),
    "grouping": ("input",),
    # Sampling: vLLM's SamplingParams and engine, transformers.GenerationConfig, TRL, OpenRLHF
    "num_samples": ("n", "k"),
    "n_samples": ("n", "k"),
    "num_return_sequences": ("n",),
    "num_generations": ("n",),
    "n_samples_per_prompt": ("n",),
    "num_candidates": ("n", "k"),
    "best_of": ("n", "k"),
    "max_new_tokens": ("max_tokens", "judge_tokens"),
    "max_completion_length": ("max_tokens",),
    "max_completion_tokens": ("max_tokens",),
    "generate_max_len": ("max_tokens",),
    "max_gen_toks": ("max_tokens",),
    "min_new_tokens": ("min_tokens",),
    "num_beams": ("search",),
    "do_sample": ("temperature",),
    "stop_strings": ("stop",),
    "stop_sequences": ("stop",),
    "tp": ("tensor_parallel_size",),
    "tp_size": ("tensor_parallel_size",),
    "vllm_tensor_parallel_size": ("tensor_parallel_size",),
    "vllm_gpu_memory_utilization": ("gpu_memory_utilization",),
    "max_model_length": ("max_model_len",),
    "backend": ("engine",),
    "adapter": ("lora",),
    "adapter_name_or_path": ("lora",),
    "lora_path": ("lora",),
    "peft_model": ("lora",),
    "lora_rank": ("lora_r",),
    "use_peft": ("lora_r",),
    "finetuning_type": ("lora_r",),
    "lora_target_modules": ("lora_targets",),
    "lora_target": ("lora_targets",),
    "target_modules": ("lora_targets",),
    "use_dora": ("dora",),
    "merge_and_unload": ("merge",),
    "api_base": ("base_url",),
    "api_key": ("api_key_env",),
    "max_concurrency": ("concurrency",),
    "num_concurrent": ("concurrency",),
    "max_retries": ("retries",),
    # Selecting and pairing
    "margin": ("min_margin",),
    "reward_margin": ("min_margin",),
    "num_proc": ("workers",),
    "num_workers": ("workers",),
}
"""Another tool's name, and ours: of several, the first that the command has; none if we have no such setting."""

NOT_A_SETTING = {
    "report_to": "metrics.jsonl and TensorBoard's files are always written to the model's folder",
    "use_wandb": "metrics.jsonl and TensorBoard's files are always written to the model's folder",
    "use_tensorboard": "metrics.jsonl and TensorBoard's files are always written to the model's folder",
    "resume_from_checkpoint": "the same command continues from the last checkpoint",
}
"""What training does without the setting."""


def normalised(name: str) -> str:
    """Normalise a name to a field's form: no dashes in front, underscores between words, lower case."""
    return name.lstrip("-").replace("-", "_").lower()


def hint(other: str, known: Iterable[str]) -> str:
    """Say what to write for an unknown key: our name for another tool's, what replaces it, or the nearest name."""
    names = sorted(known)
    if ours := our_name(other, names):
        return f' Here it is "{ours}".'
    if why := without_setting(other, names):
        return f" Leave it out: {why}."
    return did_you_mean(other, names)


def without_setting(other: str, known: Iterable[str]) -> str | None:
    """Say what replaces the setting `other`, where `known` are a trainer's; None where that is not known."""
    return NOT_A_SETTING.get(normalised(other)) if "lr_scheduler" in known else None


def our_name(other: str, known: Iterable[str]) -> str | None:
    """Return the name among `known` of the setting that other tools call `other`; None where there is none.

    A name of ours that is written differently (with underscores, with capitals) is found too.
    """
    names, name = set(known), normalised(other)
    return next((ours for ours in (name, *OTHER_NAMES.get(name, ())) if ours in names), None)
