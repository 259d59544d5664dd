"""The pivot as it is loaded and saved: generation settings that cannot be written, padding beyond the embedding."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.target_model import load_pivot, padding_id, save_target

UNWRITABLE: list[dict[str, Any]] = [
    {"temperature": 0.9, "top_p": 0.6},
    {"do_sample": False, "temperature": 0.7},
    {"top_k": 1},
    {"do_sample": False, "min_p": 0.1, "typical_p": 0.5},
    {"num_beams": 1, "early_stopping": True, "length_penalty": 2.0},
]


@pytest.fixture
def pivot(tiny_models: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_models["llama"], tmp_path / "pivot"))


@pytest.mark.parametrize("settings", UNWRITABLE, ids=str)
def test_pivot_whose_generation_config_cannot_be_written_is_saved_with_its_own_file(
    pivot: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    text = json.dumps({**settings, "eos_token_id": [2, 3]})
    (pivot / "generation_config.json").write_text(text)
    model = load_pivot(pivot, {"dtype": "float32"})
    assert model.generation_config.eos_token_id == [2, 3]
    model.save_pretrained(tmp_path / "checkpoint")  # as the trainer saves it in the middle
    save_target(model, pivot, tmp_path / "target", "{{ x }}")
    assert (tmp_path / "target" / "generation_config.json").read_text() == text
    assert (tmp_path / "target" / "model.safetensors").is_file()


def test_generation_config_that_can_be_written_is_left_alone(pivot: Path) -> None:
    (pivot / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.6}))
    assert load_pivot(pivot, {"dtype": "float32"}).generation_config.temperature == 0.6


@pytest.mark.parametrize(
    ("pad", "eos", "id_"), [(3, 2, 3), (None, 2, 2), (397, 2, 2), (397, 400, 0), (None, None, 0), (-1, 2, 2), (0, 2, 0)]
)
def test_padding_is_an_id_that_the_embedding_has(pivot: Path, pad: int | None, eos: int | None, id_: int) -> None:
    model = load_pivot(pivot, {"dtype": "float32"})
    assert model.get_input_embeddings().weight.shape[0] == 397
    assert padding_id(model, SimpleNamespace(pad_token_id=pad, eos_token_id=eos)) == id_
