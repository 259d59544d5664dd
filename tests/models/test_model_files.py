"""Which files of a model's folder count, and which pivots cannot be trained."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from stages_here import prepare_dialogues

import merge
from fusechat.config.run import load_config
from fusechat.errors import ModelError
from fusechat.models.digests import digests_of
from fusechat.models.model_files import check_trainable, weight_files
from trainer.target_model import load_pivot


@pytest.fixture
def pivot(tiny_models: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_models["llama"], tmp_path / "a|b"))


def test_other_safetensors_beside_the_weights_are_left_alone(pivot: Path, tmp_path: Path) -> None:
    before = digests_of(pivot)
    target = shutil.copytree(pivot, tmp_path / "target")
    weights = {name: tensor + 0.01 for name, tensor in load_file(pivot / "model.safetensors").items()}
    save_file(weights, Path(target) / "model.safetensors", metadata={"format": "pt"})
    for stray in ("consolidated.safetensors", "adapter_model.safetensors", "original.safetensors"):
        save_file({"layers.0.attention.wq.weight": torch.ones(2, 2)}, pivot / stray)
    assert [file.name for file in weight_files(pivot)] == ["model.safetensors"]
    assert digests_of(pivot) == before
    merge.merge_checkpoints(method="linear", base=pivot, targets={"t": target}, out=tmp_path / "out")
    fused = load_file(tmp_path / "out" / "model.safetensors")
    assert fused.keys() == weights.keys() and all(torch.equal(fused[name], weights[name]) for name in weights)


def test_index_names_the_weights(pivot: Path) -> None:
    weights = load_file(pivot / "model.safetensors")
    load_pivot(pivot, {"dtype": "float32"}).save_pretrained(pivot, max_shard_size="100KB")
    (pivot / "model.safetensors").unlink(missing_ok=True)
    save_file({"x": torch.ones(1)}, pivot / "consolidated.safetensors")
    files = weight_files(pivot)
    assert len(files) > 1 and all(file.name.startswith("model-0") for file in files)
    assert weights.keys() == {name for file in files for name in load_file(file)}
    (pivot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../x.safetensors"}}))
    with pytest.raises(ModelError, match="names files outside its folder"):
        weight_files(pivot)


@pytest.mark.parametrize(
    "change",
    [
        {"quantization_config": {"quant_method": "fp8"}},
        {"quantization_config": {"load_in_4bit": True}},
        {"text_config": {"quantization_config": {"quant_method": "awq"}}},
        {"compression_config": {"format": "int-quantized"}},
    ],
)
def test_quantized_pivot_is_refused_before_anything_is_read(
    run_file: Path, pivot: Path, change: dict[str, Any]
) -> None:
    check_trainable(pivot, "p")
    values = json.loads((pivot / "config.json").read_text())
    (pivot / "config.json").write_text(json.dumps({**values, **change}))
    config = load_config(run_file, [f"pivot.model={pivot}"])
    with pytest.raises(ModelError, match=r"llama: .*found quantization_config \(.*expected whole weights"):
        prepare_dialogues(config)
    assert not config.dialogues_path.exists()


def test_pivot_with_weights_of_eight_bits_is_refused_with_the_tensor(pivot: Path) -> None:
    weights = load_file(pivot / "model.safetensors")
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    save_file(weights, pivot / "model.safetensors")
    with pytest.raises(ModelError, match=r"p: .*model\.safetensors: tensor '.*q_proj\.weight' is F8_E4M3"):
        check_trainable(pivot, "p")
