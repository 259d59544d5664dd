"""What a merge that was stopped finds damaged in its folder is merged again, to the same bytes."""

from pathlib import Path
from typing import Any

import pytest
from merge_models import llama_weights, save_model, updated

from fusechat.errors import ArtifactError
from merge import merge_checkpoints
from merge.checkpoint_merge import begin, begin_merge, finish, thread_pool
from merge.inputs import Inputs
from merge.recipe import MergeRecipe
from merge.report import REPORT_FILE
from merge.shard_merge import WORK_FOLDER, merge_shard, read_shard_record, shard_record_path


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Any]:
    weights = llama_weights()
    base = save_model(tmp_path / "base", weights)
    targets = {name: save_model(tmp_path / name, updated(weights, seed=seed)) for seed, name in enumerate("ab", 1)}
    return {"base": base, "targets": targets, "out": tmp_path / "out"}


def begun(folders: dict[str, Any], *, claimed: bool = False) -> MergeRecipe:
    from fusechat.progress import Progress

    recipe, _ = begin_merge(
        method="sce", **folders, parameters={}, dtype="auto", max_shard_bytes=20_000, threads=1, progress=Progress(quiet=True),
        claimed=claimed,
    )  # fmt: skip
    return recipe


def merge_missing(recipe: MergeRecipe) -> list[int]:
    missing = [index for index in range(len(recipe.shards)) if read_shard_record(recipe, index) is None]
    with thread_pool(1) as pool:
        for index in missing:
            merge_shard(recipe, index, Inputs(recipe.base, recipe.targets), pool)
    return missing


def weights_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def test_damaged_shards_of_a_stopped_merge_are_merged_again(folders: dict[str, Any], tmp_path: Path) -> None:
    recipe = begun(folders)
    assert len(merge_missing(recipe)) > 3
    work = folders["out"] / WORK_FOLDER
    flipped = bytearray((work / recipe.shard_name(0)).read_bytes())
    flipped[-1] ^= 1
    (work / recipe.shard_name(0)).write_bytes(flipped)
    (work / recipe.shard_name(1)).unlink()
    shard_record_path(recipe, 2).write_text('{"tensors": {}}')
    begin(recipe)
    assert merge_missing(recipe) == [0, 1, 2]
    finish(recipe)
    whole = {**folders, "out": tmp_path / "whole"}
    merge_checkpoints(method="sce", **whole, max_shard_bytes=20_000)
    assert weights_of(folders["out"]) == weights_of(whole["out"])


def test_folder_that_is_known_to_be_its_own_is_merged_anew_without_its_report(folders: dict[str, Any]) -> None:
    merge_checkpoints(method="sce", **folders, max_shard_bytes=20_000)
    before = weights_of(folders["out"])
    (folders["out"] / REPORT_FILE).unlink()
    with pytest.raises(ArtifactError, match="already holds a model"):
        begun(folders)
    recipe = begun(folders, claimed=True)
    merge_missing(recipe)
    finish(recipe)
    assert weights_of(folders["out"]) == before and (folders["out"] / REPORT_FILE).is_file()
