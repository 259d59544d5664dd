"""Positions and vocabulary of a model as transformers and vLLM read its config.json."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fusechat.models.model_limits import (
    PLAIN_TYPES,
    architecture_values,
    position_limit,
    positions_of,
    vocabulary_columns,
)

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
GEMMA3 = {"model_type": "gemma3_text", "hidden_size": 64, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}


def limits(folder: Path, **values: Any) -> tuple[int | None, int | None]:
    (folder / "config.json").write_text(json.dumps(values))
    return position_limit(folder), vocabulary_columns(folder)


@pytest.mark.parametrize(
    ("scaling", "positions"),
    [
        (None, 64),
        ({"type": "linear", "factor": 4.0}, 256),
        ({"rope_type": "dynamic", "factor": 2.0}, 128),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}, 64),
        ({"rope_type": "llama3", "factor": 8.0, **LLAMA3}, 64),
        ({"rope_type": "default"}, 64),
    ],
)
def test_rotary_scaling_multiplies_positions_where_the_config_states_them_unscaled(
    tmp_path: Path, scaling: dict[str, Any] | None, positions: int
) -> None:
    shape = {"max_position_embeddings": 64, "rope_scaling": scaling}
    assert limits(tmp_path, model_type="llama", **shape)[0] == positions
    assert limits(tmp_path, model_type="of-no-library", **shape)[0] == positions


@pytest.mark.parametrize(
    ("values", "positions", "columns"),
    [
        ({"model_type": "gemma3", "text_config": GEMMA3, "vision_config": {}}, 131_072, 262_208),
        ({"model_type": "gemma3_text"}, 131_072, 262_208),
        ({"model_type": "llama"}, 2_048, 32_000),
        ({"model_type": "gpt2"}, 1_024, 50_257),
        ({"model_type": "llava", "text_config": {"model_type": "mistral"}}, 131_072, 32_000),
        ({"model_type": "mamba"}, None, 50_280),
        ({"model_type": "of-no-library", "vocab_size": 7}, None, 7),
        ({"model_type": "of-no-library"}, None, None),
    ],
)
def test_what_a_config_leaves_out_is_its_architectures_default(
    tmp_path: Path, values: dict[str, Any], positions: int | None, columns: int | None
) -> None:
    assert limits(tmp_path, **values) == (positions, columns)


@pytest.mark.parametrize("kind", sorted(PLAIN_TYPES))
@pytest.mark.parametrize(
    "scaling", [None, {"type": "linear", "factor": 4.0}, {"rope_type": "yarn", "factor": 2.0}, {"rope_type": "default"}]
)
def test_plain_types_state_what_transformers_reads(tmp_path: Path, kind: str, scaling: dict[str, Any] | None) -> None:
    written = {"model_type": kind, "max_position_embeddings": 64, "rope_scaling": scaling}
    positions = limits(tmp_path, **written)[0]
    read = architecture_values(tmp_path, written)
    assert len(read) > len(written), "transformers reads it"
    assert positions == positions_of(read, kind)


def test_positions_of_a_plain_type_take_no_library(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 64}))
    code = "import sys; from pathlib import Path; from fusechat.models.model_limits import position_limit\n"
    code += f"print(position_limit(Path({str(tmp_path)!r})), 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["64", "False"]


def test_layers_of_several_kinds_have_scaling_of_their_own() -> None:
    kinds = {"full": {"rope_type": "linear", "factor": 4.0}, "sliding": {"rope_type": "default"}}
    assert positions_of({"max_position_embeddings": 64, "rope_parameters": kinds}, "mixed") == 256
    assert positions_of({"max_position_embeddings": 64, "rope_parameters": kinds}, "gemma3_text") == 64
