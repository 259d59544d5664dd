"""Whole checkpoints merged on disk: output that opens anywhere, reports, and what shows before anything is written."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from merge_models import checkpoint_folders, llama_weights, load_model, save_model
from safetensors import safe_open

import merge.shard_merge
from fusechat.errors import ConfigError, ModelError
from fusechat.progress import Progress
from merge import merge_checkpoints, merge_tensors

SMALL_SHARDS = 12_000
"""Bytes; cuts the small models into several files."""


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Any]:
    return checkpoint_folders(tmp_path)


@pytest.mark.parametrize("method", ["sce", "varm", "linear", "ties", "dare_ties"])
def test_merged_folder_holds_what_merge_tensors_gives(folders: dict[str, Any], method: str) -> None:
    report = merge_checkpoints(method=method, **folders, threads=2)
    merged, base = load_model(folders["out"]), load_model(folders["base"])
    targets = {name: load_model(folder) for name, folder in folders["targets"].items()}
    assert merged.keys() == base.keys() == report["tensors"].keys()
    for name in base:
        parts = {target: weights[name] for target, weights in targets.items()}
        expected = merge_tensors(method, base[name], parts, tensor_name=name)
        assert torch.equal(merged[name], expected), name


def test_merged_folder_opens_with_transformers_and_holds_the_small_files(folders: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    merge_checkpoints(method="sce", **folders, dtype="bfloat16", max_shard_bytes=SMALL_SHARDS)
    out = folders["out"]
    model: Any = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    assert torch.equal(model.lm_head.weight, load_model(out)["lm_head.weight"])
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (folders["base"] / name).read_bytes()
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    for name, file in index["weight_map"].items():
        with safe_open(out / file, "pt") as opened:
            assert name in opened.keys()  # noqa: SIM118 - safe_open is no dict
    assert not (out / ".merge").exists()


def test_result_does_not_depend_on_threads_or_shards(
    folders: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_checkpoints(method="sce", **folders, threads=1)
    one = load_model(folders["out"])
    monkeypatch.setattr(merge.shard_merge, "KEPT_ELEMENTS", 0)  # every tensor is cut over the threads
    other = {**folders, "out": tmp_path / "other"}
    merge_checkpoints(method="sce", **other, threads=3, max_shard_bytes=SMALL_SHARDS)
    many = load_model(tmp_path / "other")
    assert all(torch.equal(one[name], many[name]) for name in one)


@pytest.mark.parametrize("granularity", ["layer", "model"])
def test_varm_over_layers_and_model_weighs_by_their_mean_squares(folders: dict[str, Any], granularity: str) -> None:
    merge_checkpoints(method="varm", **folders, parameters={"granularity": granularity})
    merged, base = load_model(folders["out"]), load_model(folders["base"])
    targets = [load_model(folder) for folder in folders["targets"].values()]
    for name in base:
        layer = name.split(".")[2] if ".layers." in name else None
        members = [other for other in base if granularity == "model" or other == name
                   or (layer is not None and f".layers.{layer}." in other)]  # fmt: skip
        count = sum(base[other].numel() for other in members)
        means = torch.stack(
            [
                sum((t[other].float() - base[other]).double().square().sum() for other in members) / count
                for t in targets
            ]
        )
        weights = means / means.sum()
        deltas = torch.stack([t[name].float() - base[name] for t in targets]).double()
        expected = base[name].double() + (weights.reshape(-1, *[1] * base[name].dim()) * deltas).sum(0)
        torch.testing.assert_close(merged[name].double(), expected, atol=1e-7, rtol=0)


def test_report_gives_coefficients_norms_and_erased_share(folders: dict[str, Any]) -> None:
    report = merge_checkpoints(method="sce", **folders, parameters={"select_topk": 1.0})
    assert json.loads((folders["out"] / "merge_report.json").read_text()) == report
    base = load_model(folders["base"])
    targets = [load_model(folder) for folder in folders["targets"].values()]
    name = "model.layers.1.mlp.up_proj.weight"
    deltas = torch.stack([t[name].float() - base[name] for t in targets]).double()
    record = report["tensors"][name]
    squares = deltas.flatten(1).square().sum(1)
    assert record["update_norm"] == pytest.approx(squares.sqrt().tolist())
    assert record["coefficients"] == pytest.approx((squares / squares.sum()).tolist())
    sign = torch.where(deltas.sum(0) >= 0, 1, -1)
    lost = (deltas.abs() * (deltas * sign < 0)).flatten(1).sum(1) / deltas.abs().flatten(1).sum(1)
    assert record["erased_share"] == pytest.approx(lost.tolist(), rel=1e-4)
    assert sum(report["total"]["coefficients"]) == pytest.approx(1)
    assert list(report["targets"]) == ["first", "second", "third"]


@pytest.mark.parametrize(
    ("method", "parameters", "expected"),
    [
        ("ties", {"density": 0.5}, {"merge_method": "ties"}),
        ("sce", {"variant": "mergekit"}, {"merge_method": "sce", "parameters": {"select_topk": 0.1}}),
        (
            "sce",
            {},
            {"merge": {"method": "sce", "parameters": {"select_topk": 0.1, "variant": "released"}, "dtype": "auto"}},
        ),
    ],
)
def test_model_card_has_a_block_to_run_again(
    folders: dict[str, Any], method: str, parameters: dict, expected: dict
) -> None:
    merge_checkpoints(method=method, **folders, parameters=parameters)
    card = (folders["out"] / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "transformers"
    block = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    assert {key: block[key] for key in expected} == expected
    for name, folder in folders["targets"].items():
        assert f"| {name} | `{folder}` |" in card
    if "models" in block:
        assert [model["model"] for model in block["models"]] == [str(folder) for folder in folders["targets"].values()]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": "sce", "parameters": {"topk": 1}}, ConfigError, "has no such parameter"),
        ({"method": "ties", "parameters": {"weights": {"first": 1.0}}}, ConfigError, "expected the targets"),
        ({"method": "nothing"}, ConfigError, "merge.method: found 'nothing'"),
    ],
)
def test_wrong_settings_show_before_anything_is_written(
    folders: dict[str, Any], change: dict, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        merge_checkpoints(**{**folders, **change})
    assert not folders["out"].exists()


def test_bad_weights_show_before_anything_is_written(folders: dict[str, Any], tmp_path: Path) -> None:
    weights = llama_weights()
    weights["model.norm.weight"][3] = float("nan")
    folders["targets"]["bad"] = save_model(tmp_path / "bad", weights)
    with pytest.raises(
        ModelError, match=r"bad/model.safetensors: tensor 'model.norm.weight': NaN or infinity at \[3\]"
    ):
        merge_checkpoints(method="linear", **folders)
    assert not folders["out"].exists()


@pytest.mark.parametrize(("dtype", "rounds"), [("auto", False), ("float32", False), ("bfloat16", True)])
def test_merge_says_where_the_fused_weights_are_rounded(folders: dict[str, Any], dtype: str, rounds: bool) -> None:
    """Two targets are float32, as the base is: only fewer bits lose their updates."""
    said: list[str] = []
    progress = Progress(quiet=True)
    progress.say = said.append  # type: ignore[method-assign]
    merge_checkpoints(method="linear", **folders, dtype=dtype, progress=progress)
    assert any("merge.dtype: float32" in line for line in said) is rounds


def test_weight_too_large_for_the_output_is_named(folders: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="a merged weight does not fit F16; set dtype: float32"):
        merge_checkpoints(method="task_arithmetic", **folders, parameters={"scale": 1e8}, dtype="float16")


def test_import_of_the_package_is_light() -> None:
    code = "import sys, merge; assert not {'torch', 'numba', 'numpy', 'pydantic'} & set(sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert result.returncode == 0, result.stderr
