"""Merges of whole checkpoints that are cut short, resumed, or done in pieces, and disks that fill up."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from merge_models import checkpoint_folders, load_model

from fusechat.errors import ArtifactError, ModelError, StorageError
from merge import merge_checkpoints
from merge.checkpoint_merge import begin, finish, thread_pool
from merge.inputs import Inputs
from merge.recipe import make_recipe
from merge.shard_merge import merge_shard

SMALL_SHARDS = 12_000
"""Bytes; cuts the small models into several files."""


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Any]:
    return checkpoint_folders(tmp_path)


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


def make_test_recipe(folders: dict[str, Any], method: str) -> Any:
    with thread_pool(1) as pool:
        return make_recipe(method=method, **folders, parameters={}, max_shard_bytes=SMALL_SHARDS, pool=pool)
