"""The door of merging: the pivot and the targets in, the fused model out.

All targets are merged but the SFT-only control and the joint target, which stands beside them. Where the joint target is
the only one there is nothing to merge: its files become the fused model. Killed and started again, it goes on after the last whole shard.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusechat.config import JOINT, MergeSection
from fusechat.config.layout import RunLayout
from fusechat.config.recipe import Recipe
from fusechat.models.resolved_model import ResolvedModel
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact, Claim
from fusechat.storage.work import Work, done_before, nothing_left

from .checkpoint_merge import begin_merge, finish, put_companions
from .compute.parameters import check_parameters, find_method, parameter_names, try_method
from .pass_through import pass_through
from .shard_worker import shard_work


def prepare(
    layout: RunLayout, pivot: ResolvedModel, section: MergeSection, names: Sequence[str], *, seed: int,
    progress: Progress,
) -> list[Work]:  # fmt: skip
    """Claim the fused model's folder and check all inputs; give the shards that are left.

    Args:
        names: of the targets that are merged, or of the joint one.
        seed: for methods that draw at random.
    Raises:
        ArtifactError: a target is not trained yet, or another recipe's work is in the output folder.
        ConfigError: an unknown method or parameter, a value out of range.
        ModelError: weights that are damaged or do not fit each other; file and tensor are named.
        StorageError: no space.
    """
    made_by = recipe(section, names, seed=seed)
    parents = {role: artifact.load(*layout.place(key)) for role, key in made_by.parents.items()}
    passes = list(names) == [JOINT]
    settings = made_by.settings if passes else {**made_by.settings, "pivot": pivot.digests}
    claim = artifact.claim(layout.fused_path, "fused", settings=settings, parents=parents, if_changed=layout.if_changed)
    if claim.artifact is not None:
        return [done_before("merge", claim.artifact)]
    if passes:
        progress.say("merge: one target, nothing to merge: the joint target is the fused model, byte for byte")
        return [nothing_left("merge", lambda: [pass_through(layout.target_path(JOINT), claim)])]
    targets = {name: layout.target_path(name) for name in parents}
    merging, report = begin_merge(
        method=section.method, base=pivot.folder, targets=targets, out=layout.fused_path,
        parameters=settings["parameters"], dtype=section.dtype, max_shard_bytes=section.max_shard_bytes,
        threads=section.threads, progress=progress, claimed=True,
    )  # fmt: skip
    companions = next(iter(targets.values()))  # it has the pivot's files, and the template it was trained under
    if report is not None:
        put_companions(merging, report, companions=companions)
        return [nothing_left("merge", lambda: [_finish(claim, targets, report)])]
    return [
        shard_work(
            merging,
            threads=section.threads,
            finish=lambda: [_finish(claim, targets, finish(merging, companions=companions))],
        )
    ]


def _finish(claim: Claim, targets: dict[str, Path], report: dict[str, Any]) -> Artifact:
    total = report["total"]
    per_target = {key: dict(zip(targets, total[key], strict=True)) for key in total if key != "elements"}
    return claim.finish({"tensors": len(report["tensors"]), "weights": total["elements"], **per_target})


def recipe(section: MergeSection, names: Sequence[str], *, seed: int) -> Recipe:
    """What decides the fused model, but for the pivot's files: the method's parameters have their defaults filled in.

    Args:
        names, seed: as for `prepare`.
    Raises:
        ConfigError: an unknown method, or parameters that it does not have or that do not fit the targets.
    """
    method = find_method(section.method)
    drawn = {"seed": seed} if "seed" in parameter_names(method) else {}
    parameters = check_parameters(method, {**drawn, **section.parameters})
    parents = {name: f"targets/{name}" for name in names}
    if list(names) == [JOINT]:
        return Recipe({"method": "pass_through"}, parents)
    try_method(method, parameters, list(names))
    return Recipe({"method": section.method, "parameters": parameters, "dtype": section.dtype}, parents)
