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
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from fusechat.config import LoraSection
from fusechat.errors import ModelError, first_line
from fusechat.storage.write_errors import storage_errors

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
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, **arguments, output_loading_info=True)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, AssertionError) as error:
        raise ModelError(f"{folder}: transformers cannot load it: {first_line(error)}") from error
    model: PreTrainedModel
    model, report = loaded
    if report["missing_keys"]:
        raise ModelError(
            f"{folder}: its files lack {len(report['missing_keys'])} weights, the first {sorted(report['missing_keys'])[0]!r}; "
            "expected a whole checkpoint"
        )
    _mend_generation_config(model)
    return model


def _mend_generation_config(model: Any) -> None:
    """Put a plain one in the place of generation settings that transformers reads but will not write.

    Every checkpoint would fail at them. A target gets the pivot's own file, so only the ids that training reads are kept.
    """
    settings = model.generation_config
    try:
        settings.validate(strict=True)
    except ValueError:
        ids = {name: getattr(settings, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model.generation_config = GenerationConfig(**ids)


def padding_id(model: PreTrainedModel, tokenizer: Any) -> int:
    """An id to fill batches with that the embedding has: padding is masked, so any will do, but it is looked up.

    A tokenizer may have a token for it that the model was never resized for.
    """
    embedding: Any = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    given = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((id_ for id_ in given if id_ is not None and 0 <= id_ < rows), 0)


def lora_config(section: LoraSection | None) -> LoraConfig | None:
    """PEFT's form of our section."""
    if section is None:
        return None
    return LoraConfig(
        r=section.r, lora_alpha=section.alpha, lora_dropout=section.dropout, target_modules=section.target_modules,
        task_type="CAUSAL_LM",
    )  # fmt: skip


def whole_model(
    trained: Any, state: dict[str, Tensor] | None, folder: Path, lora: LoraSection | None
) -> PreTrainedModel:
    """The trained model in one piece, adapters merged.

    Args:
        trained: the model that was trained, with or without adapters.
        state: the gathered weights, where the trained model holds only its process's share of them.
        folder: the pivot's.
    """
    if state is not None:
        trained = load_pivot(folder, {"dtype": "float32"})
        if lora is not None:
            trained = get_peft_model(trained, lora_config(lora))  # type: ignore[arg-type]  # a section gives a config
        _load_gathered(trained, state)
    whole: PreTrainedModel = trained.merge_and_unload() if isinstance(trained, PeftModel) else trained
    return whole


def _load_gathered(model: Any, state: dict[str, Tensor]) -> None:
    missing, unexpected = model.load_state_dict(state, strict=False)
    own = model.state_dict()
    loaded = {own[name].data_ptr() for name in state.keys() & own.keys()}
    # A tied head may be left out: it is the embedding, which was loaded.
    absent = [name for name in missing if own[name].data_ptr() not in loaded]
    if absent or unexpected:
        raise ModelError(f"gathered weights: {absent or unexpected} found on one side only, expected the pivot's names")


def save_target(model: PreTrainedModel, pivot_folder: Path, target: Path, template: str, dtype: str = "auto") -> None:
    """Write the target's folder: its weights beside the pivot's own files.

    config.json is the pivot's, so transformers and vLLM open the target in the pivot's dtype, whatever the files hold.

    Args:
        dtype: of the weights on disk; `auto`: as they were trained.
    """
    with storage_errors(target):
        vars(model).pop("forward", None)  # the fusion loss was laid over the class's own
        if dtype != "auto":
            torch.nn.Module.to(model, getattr(torch, dtype))
        model.save_pretrained(target)
        for pattern in _COPIED:
            for path in pivot_folder.glob(pattern):
                if not any(path.match(name) for name in _NOT_COPIED):
                    shutil.copyfile(path, target / path.name)
        (target / "chat_template.jinja").write_text(template, encoding="utf-8")
