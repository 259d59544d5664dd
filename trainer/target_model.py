"""The pivot before training, and the target's folder after it.

A target is the pivot's folder with other weights: configuration, tokenizer and generation settings are the pivot's own
files, so that it opens wherever the pivot does; the chat template is the one it was trained under.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from fusechat.artifact import storage_errors
from fusechat.config import LoraSection
from fusechat.errors import ModelError
from fusechat.model_files import read_model_config

_COPIED = ("*.json", "*.jinja", "*.model", "*.txt", "*.py")
_NOT_COPIED = (
    "*.index.json",
    "README*",
    "trainer_state.json",
    "training_args.bin",
    "chat_template.*",
    "artifact.json",
    "plan.json",
)


def load_pivot(folder: Path, arguments: dict[str, Any]) -> PreTrainedModel:
    """The pivot as a transformers model.

    Args:
        arguments: of `from_pretrained` (dtype, attn_implementation, ...).
    Raises:
        ModelError: transformers cannot load it, or weights are missing in the folder.
    """
    try:
        model, report = AutoModelForCausalLM.from_pretrained(folder, **arguments, output_loading_info=True)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(f"{folder}: transformers cannot load it: {str(error).splitlines()[0]}") from error
    if report["missing_keys"]:
        raise ModelError(
            f"{folder}: its files lack {len(report['missing_keys'])} weights, the first {sorted(report['missing_keys'])[0]!r}; "
            "expected a whole checkpoint"
        )
    return model


def lora_config(section: LoraSection | None) -> LoraConfig | None:
    """PEFT's form of our section."""
    if section is None:
        return None
    return LoraConfig(
        r=section.r, lora_alpha=section.alpha, lora_dropout=section.dropout, target_modules=section.target_modules,
        task_type="CAUSAL_LM",
    )  # fmt: skip


def whole_model(
    trained: PreTrainedModel | PeftModel, state: dict[str, Tensor] | None, folder: Path, lora: LoraSection | None
) -> PreTrainedModel:
    """The trained model in one piece, adapters merged.

    Args:
        state: the gathered weights, where the trained model holds only its process's share of them.
        folder: the pivot's.
    """
    if state is not None:
        fresh: Any = load_pivot(folder, {"dtype": "float32"})
        trained = get_peft_model(fresh, lora_config(lora)) if lora else fresh
        trained.load_state_dict(state)
    if isinstance(trained, PeftModel):
        trained = trained.merge_and_unload()
    return trained


def save_target(model: PreTrainedModel, pivot_folder: Path, target: Path, template: str) -> None:
    """Write the target's folder: weights in the pivot's dtype, beside the pivot's own files."""
    with storage_errors(target):
        del model.forward  # the fusion loss was laid over the class's own
        model.to(pivot_dtype(pivot_folder)).save_pretrained(target)
        for pattern in _COPIED:
            for path in pivot_folder.glob(pattern):
                if not any(path.match(name) for name in _NOT_COPIED):
                    shutil.copyfile(path, target / path.name)
        (target / "chat_template.jinja").write_text(template, encoding="utf-8")


def pivot_dtype(folder: Path) -> torch.dtype:
    """Dtype of the weights that a folder's config.json names; float32 where it names none."""
    config = read_model_config(folder)
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    return getattr(torch, str(name).removeprefix("torch."))
