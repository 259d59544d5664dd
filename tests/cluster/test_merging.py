"""Merging on a real local Ray: the same files as in one process, whatever dies on the way."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import tiny_models
from merge_models import llama_weights, save_model, updated
from ray_for_module import ray_for_module
from stages_here import merge

from cluster.pool.run_on_ray import run_on_ray
from fusechat.app import pipeline
from fusechat.config import ClusterSection, load_config
from fusechat.errors import ClusterError, ModelError, StorageError
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.work import Listener
from merge import merge_checkpoints
from merge.checkpoint_merge import begin, finish, thread_pool
from merge.group import Block, BlockMerge, TensorGroup
from merge.recipe import MergeRecipe, make_recipe
from merge.shard_worker import shard_work

SMALL_SHARDS = 12_000
"""Bytes; cuts the small models into several files."""


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    with ray_for_module(__name__, num_cpus=2):
        yield


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Any]:
    weights = llama_weights()
    targets = {f"t{j}": save_model(tmp_path / f"t{j}", updated(weights, seed=j)) for j in (1, 2, 3)}
    return {"base": save_model(tmp_path / "base", weights), "targets": targets}


def begun(models: dict[str, Any], out: Path, method: Any = "sce", **parameters: Any) -> MergeRecipe:
    with thread_pool(1) as pool:
        recipe = make_recipe(
            method=method, **models, out=out, parameters=parameters, max_shard_bytes=SMALL_SHARDS, pool=pool
        )
    assert not begin(recipe)
    return recipe


def spread(
    recipe: MergeRecipe,
    shards: list[int] | None = None,
    *,
    on_done: Callable[[float], None] = lambda megabytes: None,
    said: list[str] | None = None,
) -> None:
    """Merge shards of a begun recipe on Ray, all by default."""
    work = shard_work(recipe, threads=1, finish=list)
    work = replace(work, missing=work.missing if shards is None else shards)
    progress = SaidProgress()

    class Results(Listener):
        def on_done(self, result: dict[str, Any]) -> None:
            on_done(result["MB"])

    try:
        run_on_ray([work], ClusterSection(), progress=progress, listen=lambda work: Results())
    finally:
        if said is not None:
            said += progress.lines


def files(folder: Path) -> dict[str, bytes]:
    """Weights, index and report."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith(("model", "merge_"))}


def test_spread_over_workers_gives_the_files_of_one_process(models: dict[str, Any], tmp_path: Path) -> None:
    recipe = begun(models, tmp_path / "spread")
    count, written = len(recipe.shards), []
    assert count > 3
    spread(recipe, on_done=written.append)
    finish(recipe)
    assert sorted(written) == sorted(sum(tensor.num_bytes for tensor in shard) / 1e6 for shard in recipe.shards)
    merge_checkpoints(method="sce", **models, out=tmp_path / "here", max_shard_bytes=SMALL_SHARDS)
    assert files(tmp_path / "spread") == files(tmp_path / "here")
    assert not (tmp_path / "spread" / ".merge").exists()


def mean_that_dies_once(group: TensorGroup, *, marker: str) -> BlockMerge:
    """The mean of the targets; the process is killed where it first meets a certain tensor."""

    def merge(block: Block) -> np.ndarray:
        if group.name == "model.layers.1.mlp.up_proj.weight" and not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return block.base + block.deltas.mean(axis=0)

    return BlockMerge(merge)


def test_worker_killed_amid_a_shard_is_replaced_and_the_shard_made_again(
    models: dict[str, Any], tmp_path: Path
) -> None:
    marker = tmp_path / "died"
    recipe = begun(models, tmp_path / "spread", mean_that_dies_once, marker=str(marker))
    said: list[str] = []
    spread(recipe, said=said)
    assert marker.exists() and any("died with shards" in line for line in said), said
    finish(recipe)
    whole = tmp_path / "here"
    merge_checkpoints(
        method=mean_that_dies_once, **models, out=whole, parameters={"marker": str(marker)},
        max_shard_bytes=SMALL_SHARDS,
    )  # fmt: skip
    assert files(tmp_path / "spread") == files(whole)


def test_workers_that_do_not_see_the_folder_are_refused(models: dict[str, Any], tmp_path: Path) -> None:
    recipe = begun(models, tmp_path / "spread")
    shutil.rmtree(tmp_path / "spread")
    with pytest.raises(StorageError, match="does not see the merge that was begun there"):
        spread(recipe, [0, 1])
    recipe = begun(models, tmp_path / "spread")
    save_model(models["targets"]["t2"], updated(llama_weights(), seed=9), shards=2)
    (models["targets"]["t2"] / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"t2/model.safetensors: None bytes on this machine, \d+ where .* planned"):
        spread(recipe, [0, 1])


def test_shard_that_cannot_be_merged_is_named_and_the_others_are_kept(models: dict[str, Any], tmp_path: Path) -> None:
    recipe = begun(models, tmp_path / "spread")
    (tmp_path / "spread" / ".merge" / "shard-00002.json").mkdir()  # its record has no place to go
    with pytest.raises(ClusterError, match=r"set aside: merge sce, model-00002-of-"):
        spread(recipe, [0, 1, 2])
    kept = sorted(path.name for path in (tmp_path / "spread" / ".merge").glob("shard-*.json") if path.is_file())
    assert kept == ["shard-00001.json", "shard-00003.json"]


def test_pipeline_merges_on_the_cluster_given_by_address_and_resumes(run_file: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    overrides = [f"cluster.address={address}", "merge.max_shard_bytes=20000", "merge.threads=1"]
    config = load_config(run_file, overrides)
    for seed, source in enumerate(config.sources, 20):
        claim = artifact.claim(config.target_path(source.name), "target", settings={"seed": seed}, parents={})
        tiny_models.save_llama(config.target_path(source.name), seed=seed)
        claim.finish({"steps": 1})
    said = SaidProgress()
    pipeline.run(config, progress=said, only="merge")
    assert any("workers of 1 threads on Ray" in line for line in said.lines), said.lines
    made = files(config.fused_path)
    shutil.rmtree(config.fused_path)
    merge(config)  # in this process
    assert files(config.fused_path) == made
    assert len([name for name in made if name.endswith(".safetensors")]) > 2


class SaidProgress(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)
