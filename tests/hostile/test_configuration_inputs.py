"""config.json, LoRA adapters and tokenizers that mean harm are read or refused."""

import json
from pathlib import Path

import pytest
from hostile import nested, survives
from hostile_models import entry, write_weights

from fusechat.models.model_files import check_trainable, read_model_config
from fusechat.models.model_limits import position_limit, vocabulary_columns
from fusechat.models.model_sizes import size_of_config
from merge.files.checkpoint import Checkpoint
from merge.files.lora import adapted_tensors
from merge.files.vocabulary import read_vocabulary

LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "vocab_size": 8,
}
CONFIGS = [
    "", "[]", "5", "null", nested(5000), "9" * 5000, '{"vocab_size": NaN, "max_position_embeddings": NaN}',
    '{"vocab_size": ' + "9" * 5000 + "}", '{"text_config": 5}', '{"text_config": [1]}', '{"quantization_config": [1]}',
    '{"quantization_config": {"quant_method": {}}}', '{"model_type": ["x"]}', '{"model_type": {}}', '{"model_type": "\\ud800"}',
    '{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}', '{"rope_scaling": {"type": ["linear"], "factor": 2}}',
    '{"rope_scaling": {"type": "linear", "factor": 1e999}, "max_position_embeddings": 8}',
    *(json.dumps({**LLAMA, key: value}) for key in LLAMA for value in (-5, 0, 10**9, 1e999, "x", None, [1]) if key != "model_type"),
    *(json.dumps({**LLAMA, "num_key_value_heads": value}) for value in (-5, 0, "x", [1])), '{"model_type": "llama", "dtype": "evil"}',
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CONFIGS)))
def test_configuration_that_means_harm_is_read_or_refused(model_folder: Path, number: int) -> None:
    (model_folder / "config.json").write_text(CONFIGS[number])
    survives(lambda: check_trainable(model_folder, "model"))
    survives(lambda: position_limit(model_folder))
    survives(lambda: vocabulary_columns(model_folder))
    survives(lambda: size_of_config(read_model_config(model_folder)))


ADAPTERS = [
    "[]", "5", "null", nested(5000), "9" * 5000, '{"lora_alpha": "x"}', '{"lora_alpha": [1]}', '{"lora_alpha": 1e999}',
    '{"lora_alpha": NaN}', '{"lora_alpha": ' + "9" * 4000 + "}", '{"alpha_pattern": {"(": 1}}', '{"alpha_pattern": [1]}',
    '{"alpha_pattern": {"a": "x"}}', '{"init_lora_weights": {}}', '{"init_lora_weights": [1]}', '{"peft_type": [1]}',
]  # fmt: skip
FACTORS: list[dict[str, object]] = [
    {"shape": [16]}, {"dtype": "I32"}, {"dtype": "F8_E4M3", "data_offsets": [0, 16]}, {"shape": [0, 4], "data_offsets": [0, 0]},
]  # fmt: skip


@pytest.mark.parametrize("text", [*ADAPTERS, *FACTORS])
def test_adapter_that_means_harm_is_refused(model_folder: Path, tmp_path: Path, text: str | dict[str, object]) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    changes = text if isinstance(text, dict) else {}
    (folder / "adapter_config.json").write_text(text if isinstance(text, str) else "{}")
    names = [f"base_model.model.a.lora_{side}.weight" for side in "AB"]
    write_weights(folder / "adapter_model.safetensors", {name: entry(**changes) for name in names})
    base = Checkpoint(model_folder).tensors
    assert survives(lambda: adapted_tensors(Checkpoint(folder), base))


TOKENIZERS = [
    "[]", "5", "null", nested(5000), "9" * 5000, '{"model": 5}', '{"model": {"vocab": 5}}', '{"model": {"vocab": [1]}}',
    '{"model": {"vocab": {}}, "added_tokens": [1]}', '{"model": {"vocab": {}}, "added_tokens": [{"content": "a", "id": 1e999}]}',
    '{"model": {"vocab": {"a": "x"}}}', '{"model": {"vocab": {"a": -1}}}', '{"model": {"vocab": {"a": 9223372036854775808}}}',
    '{"model": {"vocab": {"a": {}}}}',
]  # fmt: skip


@pytest.mark.parametrize("text", TOKENIZERS)
def test_tokenizer_of_a_merge_that_means_harm_is_refused(model_folder: Path, text: str) -> None:
    (model_folder / "tokenizer.json").write_text(text)
    assert survives(lambda: read_vocabulary(model_folder))
