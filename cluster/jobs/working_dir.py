"""What `fusechat submit` sends: the working directory without data, stores, models and checkpoints; and what must lie outside."""

from pathlib import Path
from typing import Any

from fusechat.config import ClusterSection, RunConfig
from fusechat.config.layout import RunLayout
from fusechat.errors import ClusterSetupError

EXCLUDES = (
    ".git", ".venv", "venv", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis", "node_modules", "wandb",
    "/data", "/runs", "/models", "/checkpoints", "/stores", "*.zarr",
    "*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.parquet", "*.arrow",
)  # fmt: skip
"""In gitignore's syntax; what .gitignore and .rayignore name is left out too."""
SYNTAX = "gitignore"
MIB = 2**20
NAMED_FOLDERS = 4


def excludes_of(cluster: ClusterSection, layout: RunLayout, folder: Path) -> list[str]:
    """Patterns of what stays at home: the usual, the run's own folders, and the run file's."""
    patterns = [*EXCLUDES, *cluster.working_dir_excludes]
    for place in (layout.run_folder, Path(layout.store_url)):
        if place.is_absolute() and place.is_relative_to(folder):
            patterns.append(f"/{place.relative_to(folder)}")
    return patterns


def sent_files(folder: Path, excludes: list[str]) -> dict[str, int]:
    """Path within the folder -> bytes, of the files that Ray would send: it leaves out what `excludes`, .gitignore and
    .rayignore of any folder above a file name.
    """
    from pathspec import PathSpec

    files: dict[str, int] = {}

    def walk(place: Path, specs: list[tuple[Path, PathSpec[Any]]]) -> None:
        ignored = [name for name in (".gitignore", ".rayignore") if (place / name).is_file()]
        specs = specs + [
            (place, PathSpec.from_lines(SYNTAX, (place / name).read_text().splitlines())) for name in ignored
        ]
        for path in place.iterdir():
            if any(spec.match_file(path.relative_to(root)) for root, spec in specs):
                continue
            if path.is_dir():
                walk(path, specs)
            elif path.is_file():
                files[str(path.relative_to(folder))] = path.stat().st_size

    walk(folder, [(folder, PathSpec.from_lines(SYNTAX, excludes))])
    return files


def check_working_dir(config: RunConfig, folder: Path, files: dict[str, int]) -> None:
    """Refuse what cannot work on another machine.

    Raises:
        ClusterSetupError: too large (the largest folders are named), a result that would be lost with the job's
            temporary folder, or an input that is not sent.
    """
    size, limit = sum(files.values()), config.cluster.working_dir_mib * MIB
    if size > limit:
        raise ClusterSetupError(
            f"{folder}: the working directory has {size / MIB:,.1f} MiB in {len(files):,} files, the limit is "
            f"{limit / MIB:g} MiB; largest: {_largest(files)}; leave them out with cluster.working_dir_excludes, or send "
            "another folder with --working-dir"
        )
    _refuse_relative(config.layout)
    missing = [path for path in _inputs(config, folder) if not _travels(path, files)]
    if missing:
        raise ClusterSetupError(
            f"{', '.join(missing)}: not sent with the working directory {folder}; put it on a filesystem that all nodes "
            "share and give its absolute path"
        )


def require_absolute(cluster: ClusterSection, layout: RunLayout) -> None:
    """On a Ray that was not started here, refuse results in a relative path: workers start in folders of their own.

    Raises:
        ClusterSetupError: naming the field.
    """
    if cluster.ray_address:
        _refuse_relative(layout)


def _refuse_relative(layout: RunLayout) -> None:
    for name, place in (("run.output", str(layout.run_folder)), ("run.store", layout.store_url)):
        if "://" not in place and not Path(place).is_absolute():
            raise ClusterSetupError(
                f"{name} is {place!r}, which is another folder for each worker of a cluster, and temporary in a job; give an "
                "absolute path on a filesystem that all nodes share" + (", or a URL" if name == "run.store" else "")
            )


def _inputs(config: RunConfig, folder: Path) -> list[str]:
    """Relative paths that the run reads; on the cluster they begin at the folder that is sent."""
    section = config.dialogues
    paths = [path.split("::")[0] for path in [*section.train, *section.prompts, *section.held_out]]
    paths += [model.template for model in config.models if model.template not in ("native", "pivot")]
    paths += [model.model for model in config.models if (folder / model.model).is_dir()]
    paths += [answer_set.file for answer_set in config.evaluation.questions.sets]
    paths += [str(config.evaluation.lm_eval.folder)] if config.evaluation.lm_eval.folder else []
    return [path for path in dict.fromkeys(paths) if not Path(path).is_absolute()]


def _travels(path: str, files: dict[str, int]) -> bool:
    place = str(Path(path))
    return place in files or any(file.startswith(f"{place}/") for file in files)


def _largest(files: dict[str, int]) -> str:
    folders: dict[str, int] = {}
    for path, size in files.items():
        top = path.split("/")[0] + ("/" if "/" in path else "")
        folders[top] = folders.get(top, 0) + size
    largest = sorted(folders.items(), key=lambda item: -item[1])[:NAMED_FOLDERS]
    return ", ".join(f"{name} {size / MIB:,.1f} MiB" for name, size in largest)
