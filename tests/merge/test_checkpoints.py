"""Whole checkpoints merged on disk: output that opens anywhere, resumption, reports, and disks that fill up."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from merge_models import llama_weights, load_model, save_model, save_tokenizer, updated
from safetensors import safe_open

import merge.shard_merge
from fusechat.errors import ArtifactError, ConfigError, ModelError, StorageError
from fusechat.progress import Progress
from merge import merge_checkpoints, merge_tensors
from merge.checkpoint_merge import begin, finish, thread_pool
from merge.inputs import Inputs
from merge.recipe import make_recipe
from merge.shard_merge import merge_shard

SMALL_SHARDS = 12_000
"""Bytes; cuts the small models into several files."""


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Any]:
    """A base with a tokenizer, and three targets; the first in bfloat16 shards."""
    weights = llama_weights()
    base = save_model(tmp_path / "base", weights)
    save_tokenizer(base, [f"w{i}" for i in range(80)])
    (base / "generation_config.json").write_text('{"eos_token_id": 2}')
    (base / "chat_template.jinja").write_text("{{ messages }}")
    first = {name: tensor.bfloat16() for name, tensor in updated(weights, seed=1).items()}
    targets = {"first": save_model(tmp_path / "first", first, shards=2)}
    for seed, name in enumerate(("second", "third"), 2):
        targets[name] = save_model(tmp_path / name, updated(weights, seed=seed, size=3e-2))
    return {"base": base, "targets": targets, "out": tmp_path / "out"}


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


def test_file_that_is_cut_while_it_is_read_is_named(folders: dict[str, Any]) -> None:
    recipe = make_test_recipe(folders, "sce")
    begin(recipe)
    inputs = Inputs(recipe.base, recipe.targets)
    file = folders["targets"]["second"] / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    with (
        thread_pool(1) as pool,
        pytest.raises(ModelError, match=r"second/model.safetensors: cut while it was being read"),
    ):
        for index in range(len(recipe.shards)):
            merge_shard(recipe, index, inputs, pool)
    assert not list((folders["out"] / ".merge").glob("*.partial"))


def test_too_little_space_shows_before_anything_is_written(
    folders: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match=r"the fused model needs \d.*MB, .* has 0.0 MB free"):
        merge_checkpoints(method="linear", **folders)
    assert not folders["out"].exists()


def test_disk_that_fills_up_leaves_whole_shards_and_the_merge_goes_on(
    folders: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, writes = os.pwrite, []

    def full_after_a_while(*arguments: Any) -> int:
        writes.append(arguments)
        if len(writes) > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full_after_a_while)
        with pytest.raises(StorageError, match="No space left on device"):
            merge_checkpoints(method="sce", **folders, max_shard_bytes=SMALL_SHARDS)
    work = folders["out"] / ".merge"
    assert not list(work.glob("*.partial")) and not (folders["out"] / "config.json").exists()
    whole = {path.name: path.stat().st_mtime_ns for path in work.glob("*.safetensors")}
    assert whole
    merge_checkpoints(method="sce", **folders, max_shard_bytes=SMALL_SHARDS)
    assert {name: (folders["out"] / name).stat().st_mtime_ns for name in whole} == whole


def test_killed_merge_leaves_no_model_and_goes_on_to_the_same_result(folders: dict[str, Any], tmp_path: Path) -> None:
    """Killed amid the third shard, in a process of its own."""
    code = f"""
import os, signal
from merge import merge_checkpoints
from merge.files.shard_writer import ShardWriter
real = ShardWriter.write
def killed(writer, *arguments):
    real(writer, *arguments)
    if writer.path.name.startswith('model-00003'):
        os.kill(os.getpid(), signal.SIGKILL)
ShardWriter.write = killed
merge_checkpoints(method='ties', base={str(folders["base"])!r}, out={str(folders["out"])!r}, max_shard_bytes={SMALL_SHARDS},
    targets={ {name: str(path) for name, path in folders["targets"].items()}!r})
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert result.returncode == -signal.SIGKILL, result.stderr
    out = folders["out"]
    assert not list(out.glob("*.safetensors")) and not (out / "config.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (out / ".merge").glob("*.safetensors")}
    assert len(kept) == 2 and list((out / ".merge").glob("model-00003-*.partial"))
    merge_checkpoints(method="ties", **folders, max_shard_bytes=SMALL_SHARDS)
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    merge_checkpoints(method="ties", **{**folders, "out": tmp_path / "uninterrupted"})
    one, other = load_model(out), load_model(tmp_path / "uninterrupted")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_finished_merge_is_handed_back_and_another_is_refused(folders: dict[str, Any]) -> None:
    report = merge_checkpoints(method="linear", **folders)
    time = (folders["out"] / "model.safetensors").stat().st_mtime_ns
    assert merge_checkpoints(method="linear", **folders) == report
    assert (folders["out"] / "model.safetensors").stat().st_mtime_ns == time
    with pytest.raises(ArtifactError, match="already holds a model"):
        merge_checkpoints(method="sce", **folders)


def test_leftovers_of_another_recipe_are_never_mixed_in(folders: dict[str, Any]) -> None:
    recipe = make_test_recipe(folders, "ties")
    begin(recipe)
    with thread_pool(1) as pool:
        merge_shard(recipe, 0, Inputs(recipe.base, recipe.targets), pool)
    with pytest.raises(ArtifactError, match=r"shard model-00002-of-.* is not whole"):
        finish(recipe)
    merge_checkpoints(method="linear", **folders)
    whole = load_model(folders["out"])
    expected = [load_model(folder) for folder in folders["targets"].values()]
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, sum(t[name].float() for t in expected) / 3, atol=1e-7, rtol=0)


def make_test_recipe(folders: dict[str, Any], method: str) -> Any:
    with thread_pool(1) as pool:
        return make_recipe(method=method, **folders, parameters={}, max_shard_bytes=SMALL_SHARDS, pool=pool)


@pytest.mark.parametrize(("dtype", "rounds"), [("auto", False), ("float32", False), ("bfloat16", True)])
def test_merge_says_where_the_fused_weights_are_rounded(folders: dict[str, Any], dtype: str, rounds: bool) -> None:
    """Two targets are float32, as the base is: only fewer bits lose their updates."""
    said: list[str] = []
    progress = Progress(quiet=True)
    progress.say = said.append  # type: ignore[method-assign]
    merge_checkpoints(method="linear", **folders, dtype=dtype, progress=progress)
    assert any("merge.dtype: float32" in line for line in said) is rounds


def test_shards_can_be_merged_in_any_order_by_anyone(folders: dict[str, Any], tmp_path: Path) -> None:
    recipe = make_test_recipe(folders, "sce")
    begin(recipe)
    for index in reversed(range(len(recipe.shards))):
        with thread_pool(1) as pool:
            merge_shard(recipe, index, Inputs(recipe.base, recipe.targets), pool)
    finish(recipe)
    merge_checkpoints(method="sce", **{**folders, "out": tmp_path / "whole"})
    spread, whole = load_model(folders["out"]), load_model(tmp_path / "whole")
    assert all(torch.equal(spread[name], whole[name]) for name in whole)


def test_weight_too_large_for_the_output_is_named(folders: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="a merged weight does not fit F16; set dtype: float32"):
        merge_checkpoints(method="task_arithmetic", **folders, parameters={"scale": 1e8}, dtype="float16")


def test_import_of_the_package_is_light() -> None:
    code = "import sys, merge; assert not {'torch', 'numba', 'numpy', 'pydantic'} & set(sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert result.returncode == 0, result.stderr
