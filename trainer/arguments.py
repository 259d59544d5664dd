"""`training.trl` in, the arguments of TRL's SFTConfig out: the published ones where nothing is given.

Knows nothing about trl itself; `fusion_trainer.sft_config` checks the names.
"""

from typing import Any

import torch

from fusechat.errors import ConfigError

from .precision import bfloat16_is_fast

PUBLISHED_BATCH = 128
"""Dialogues of one optimizer step in the paper."""
DEFAULT_DEVICE_BATCH = 4

PUBLISHED = {"learning_rate": 5e-6, "lr_scheduler_type": "cosine", "warmup_steps": 0.03, "num_train_epochs": 3}
"""Of the paper (arXiv 2408.07990, section 4.1); a warmup below 1 is a share of all steps."""

OURS = {
    "output_dir": "run.output decides it",
    "dataset_kwargs": "dialogues come from the run's artifacts",
    "remove_unused_columns": "dialogues come from the run's artifacts",
    "dataset_text_field": "dialogues come from the run's artifacts",
    "shuffle_dataset": "use train_sampling_strategy",
    "chat_template_path": "use pivot.template",
    "eos_token": "the pivot's own is used",
    "pad_token": "the pivot's own is used",
    "completion_only_loss": "the loss is over the assistant's tokens",
    "assistant_only_loss": "the loss is over the assistant's tokens",
    "loss_type": "use training.divergence and training.sft_weight",
    "label_smoothing_factor": "use training.divergence and training.sft_weight",
    "eval_strategy": "held-out dialogues are measured by the evaluate stage",
    "resume_from_checkpoint": "a run resumes from its last whole checkpoint by itself",
    "disable_tqdm": "the run's own progress is shown",
}
"""Fields of SFTConfig that cannot be set, and what decides them."""


def training_arguments(trl: dict[str, Any], *, seed: int, max_tokens: int, num_processes: int) -> dict[str, Any]:
    """All arguments, but for the output folder.

    Args:
        trl: `training.trl` of the run file.
        seed, max_tokens: of the run, where `trl` does not say otherwise.
        num_processes: that share a batch.
    Raises:
        ConfigError: a field that something else decides.
    """
    given = dict(trl)
    for name in given.keys() & OURS.keys():
        raise ConfigError(f"training.trl.{name}: cannot be set: {OURS[name]}")
    on_accelerator = torch.accelerator.is_available()
    arguments: dict[str, Any] = {
        **PUBLISHED,
        "seed": seed,
        "max_length": max_tokens,
        "bf16": not given.get("fp16") and bfloat16_is_fast(),
        "use_cpu": not on_accelerator,
        "dataloader_pin_memory": on_accelerator,
        "train_sampling_strategy": "group_by_length",
        "logging_steps": 1,
        "save_strategy": "steps" if "save_steps" in given else "no",
        "save_total_limit": 1,
        "report_to": "none",
        **given,
        "disable_tqdm": True,
    }
    device_batch = int(arguments.setdefault("per_device_train_batch_size", _device_batch(given, num_processes)))
    if "gradient_accumulation_steps" not in given:
        arguments["gradient_accumulation_steps"] = max(1, PUBLISHED_BATCH // (device_batch * num_processes))
    return arguments


def model_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Takes `model_init_kwargs` out of the arguments; the weights that are trained are float32 unless it says otherwise.

    At the published learning rate a step changes a weight by less than bfloat16 can tell apart.
    """
    return {"dtype": "float32", **(arguments.pop("model_init_kwargs", None) or {})}


def packing_arguments(arguments: dict[str, Any], attention: str) -> tuple[bool, bool]:
    """Takes `packing` and `padding_free` out of the arguments: (pack dialogues, lay a batch out flat)."""
    packing = bool(arguments.pop("packing", False))
    flat = bool(arguments.pop("padding_free", False))
    arguments.pop("packing_strategy", None)
    flash = attention.startswith("flash_attention")
    if flat and not flash:
        raise ConfigError(
            f"training.trl.padding_free: found attention {attention!r}, expected FlashAttention; "
            "set training.trl.model_init_kwargs.attn_implementation, or leave padding_free out"
        )
    return packing or flat, flash and (packing or flat)


def _device_batch(given: dict[str, Any], num_processes: int) -> int:
    if "gradient_accumulation_steps" in given:
        return max(1, PUBLISHED_BATCH // (int(given["gradient_accumulation_steps"]) * num_processes))
    return min(DEFAULT_DEVICE_BATCH, max(1, PUBLISHED_BATCH // num_processes))
