"""The door of merging: the pivot and the targets in, the fused model out.

All targets are merged but the SFT-only control and the joint target, which stands beside them. Where the joint target is
the only one there is nothing to merge: its files become the fused model. Killed and started again, it goes on after the last whole shard.
"""

from pathlib import Path
from typing import Any

from fusechat.config import JOINT, RunConfig
from fusechat.models import model_files
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact, Claim
from fusechat.storage.work import Work, nothing_left, run_here

from .checkpoint_merge import begin_merge, finish
from .compute.parameters import check_parameters, find_method, parameter_names, try_method
from .pass_through import pass_through
from .shard_worker import shard_work


def run(config: RunConfig, *, progress: Progress | None = None) -> Artifact:
    """Merge the targets of a run in this process; raises as `prepare`."""
    progress = progress or Progress(quiet=True)
    return run_here(prepare(config, progress=progress), progress)[0]


def prepare(config: RunConfig, *, progress: Progress) -> list[Work]:
    """Claim the fused model's folder and check all inputs; give the shards that are left.

    Raises:
        ArtifactError: a target is not trained yet, or another recipe's work is in the output folder.
        ConfigError: an unknown method or parameter, a value out of range.
        ModelError: weights that are damaged or do not fit each other; file and tensor are named.
        StorageError: no space.
    """
    if config.merged_names == [JOINT]:
        return [nothing_left("merge", lambda: [pass_through(config, progress=progress)])]
    section, pivot = config.merge, model_files.resolve_model(config.pivot)
    parents = {name: artifact.load(config.target_path(name), "target") for name in config.merged_names}
    parameters = _checked_parameters(config)
    settings = {
        "method": section.method,
        "parameters": parameters,
        "dtype": section.dtype,
        "pivot": model_files.digests(pivot, config.digests_path),
    }
    claim = artifact.claim(
        config.fused_path, "fused", settings=settings, parents=parents, if_changed=config.run.if_changed
    )
    if claim.artifact is not None:
        artifacts = [claim.artifact]
        return [nothing_left("merge", lambda: artifacts)]
    targets = {name: config.target_path(name) for name in parents}
    recipe, report = begin_merge(
        method=section.method, base=pivot, targets=targets, out=config.fused_path, parameters=parameters,
        dtype=section.dtype, max_shard_bytes=section.max_shard_bytes, threads=section.threads, progress=progress,
    )  # fmt: skip
    if report is not None:
        return [nothing_left("merge", lambda: [_finish(claim, targets, report)])]
    companions = next(iter(targets.values()))  # it has the pivot's files, and the template it was trained under
    return [
        shard_work(
            recipe,
            threads=section.threads,
            finish=lambda: [_finish(claim, targets, finish(recipe, companions=companions))],
        )
    ]


def _finish(claim: Claim, targets: dict[str, Path], report: dict[str, Any]) -> Artifact:
    total = report["total"]
    per_target = {key: dict(zip(targets, total[key], strict=True)) for key in total if key != "elements"}
    return claim.finish({"tensors": len(report["tensors"]), "weights": total["elements"], **per_target})


def check(config: RunConfig) -> None:
    """Refuse, before any target is trained, a method or parameters that merging would refuse; ConfigError."""
    _checked_parameters(config)


def _checked_parameters(config: RunConfig) -> dict[str, Any]:
    """The method's parameters, defaults filled in, with the run's seed for methods that draw at random.

    Raises:
        ConfigError: parameters that the method does not have or that do not fit the targets.
    """
    method = find_method(config.merge.method)
    seed = {"seed": config.run.seed} if "seed" in parameter_names(method) else {}
    checked = check_parameters(method, {**seed, **config.merge.parameters})
    if config.merged_names != [JOINT]:
        try_method(method, checked, config.merged_names)
    return checked
