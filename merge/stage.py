"""The door of merging: the pivot and the targets in, the fused model out.

All targets are merged but the SFT-only control. Killed and started again, it goes on after the last whole shard.
"""

from fusechat import artifact, model_files
from fusechat.artifact import Artifact
from fusechat.config import RunConfig
from fusechat.logs import Progress

from .checkpoint_merge import merge_checkpoints
from .parameters import find_method, parameter_names


def run(config: RunConfig, *, progress: Progress | None = None) -> Artifact:
    """Merge the targets of a run.

    Raises:
        ArtifactError: a target is not trained yet, or another plan's work is in the output folder.
        ConfigError: an unknown method or parameter, a value out of range.
        ModelError: weights that are damaged or do not fit each other; file and tensor are named.
        StorageError: no space.
    """
    section, pivot = config.merge, model_files.resolve_model(config.pivot)
    parents = {source.name: artifact.load(config.target_path(source.name), "target") for source in config.sources}
    parameters = _seeded(config)
    settings = {
        "method": section.method,
        "parameters": parameters,
        "dtype": section.dtype,
        "pivot": model_files.digests(pivot, config.run.output / "digests.json"),
    }
    claim = artifact.claim(
        config.fused_path, "fused", settings=settings, parents=parents, if_changed=config.run.if_changed
    )
    if claim.artifact is not None:
        return claim.artifact
    targets = {name: config.target_path(name) for name in parents}
    report = merge_checkpoints(
        method=section.method, base=pivot, targets=targets, out=config.fused_path, parameters=parameters,
        dtype=section.dtype, threads=section.threads, progress=progress,
        companions=next(iter(targets.values())),  # a target has the pivot's files, and the template it was trained under
    )  # fmt: skip
    total = report["total"]
    per_target = {key: dict(zip(targets, total[key], strict=True)) for key in total if key != "elements"}
    return claim.finish({"tensors": len(report["tensors"]), "weights": total["elements"], **per_target})


def _seeded(config: RunConfig) -> dict:
    """The method's parameters, with the run's seed for methods that draw at random."""
    takes_seed = "seed" in parameter_names(find_method(config.merge.method))
    return {**({"seed": config.run.seed} if takes_seed else {}), **config.merge.parameters}
