"""Merging whole checkpoints on disk: the base's and the targets' folders in, the fused model's folder out.

Nothing is written before all inputs are checked. Shards grow in a hidden folder below the output; when all are whole
they move up, then the small files, `config.json` last: a folder without it opens as no model.
"""

import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fusechat.errors import ArtifactError
from fusechat.models.model_files import INDEX_FILE, read_model_config
from fusechat.progress import Progress
from fusechat.storage.files import read_json, write_json
from fusechat.storage.work import run_here
from fusechat.storage.write_errors import storage_errors

from .card import model_card
from .methods import Method
from .recipe import DTYPES, MergeRecipe, make_recipe
from .report import REPORT_FILE, make_report
from .shard_merge import WORK_FOLDER, new_thread_pool, read_shard_record, remove_damaged
from .shard_worker import shard_work

COMPANIONS = (
    "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja", "chat_template.json",
    "fusechat_prompt.json",
)  # fmt: skip
"""Files that are copied beside the weights."""


def merge_checkpoints(
    *,
    method: str | Method,
    base: str | Path,
    targets: Mapping[str, str | Path],
    out: str | Path,
    parameters: Mapping[str, Any] | None = None,
    dtype: str = "auto",
    max_shard_bytes: int = 5 * 10**9,
    threads: int | None = None,
    companions: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Merge checkpoints into one Hugging Face folder.

    Killed and called again with the same inputs, it goes on after the last whole shard. The result does not depend on
    `threads` or `max_shard_bytes`.

    Args:
        method: a name of `merge.methods.METHODS`, or a function of that form.
        base: the pivot's folder.
        targets: name -> folder of a model, or of a LoRA adapter on the base.
        out: folder of the fused model; may hold an unfinished merge, but no other model.
        parameters: of the method.
        dtype: of the fused weights; auto: each tensor's in the base.
        max_shard_bytes: largest output file, bytes (a single tensor may exceed it).
        threads: that read, merge and write; default: one per core.
        companions: folder whose tokenizer, template and generation settings are copied; default: the base's.
    Returns:
        The report, as it is written to merge_report.json.
    Raises:
        ConfigError, ModelError, StorageError: as `recipe.make_recipe`; also a disk that fills up on the way.
        ArtifactError: `out` holds another model.
    """
    progress = progress or Progress(quiet=True)
    recipe, report = begin_merge(
        method=method, base=base, targets=targets, out=out, parameters=parameters or {}, dtype=dtype,
        max_shard_bytes=max_shard_bytes, threads=threads, progress=progress,
    )  # fmt: skip
    if report is not None:
        return report
    run_here([shard_work(recipe, threads=threads, finish=list)], progress)
    return finish(recipe, companions=companions)


def begin_merge(
    *,
    method: str | Method,
    base: str | Path,
    targets: Mapping[str, str | Path],
    out: str | Path,
    parameters: Mapping[str, Any],
    dtype: str,
    max_shard_bytes: int,
    threads: int | None,
    progress: Progress,
    claimed: bool = False,
) -> tuple[MergeRecipe, dict[str, Any] | None]:
    """Check all inputs, decide what goes where, and make or find the work folder; arguments as `merge_checkpoints`.

    Args:
        claimed: the output folder is known to be this merge's own, whatever stands in it.
    Returns:
        the recipe, and its report where the output is whole already.
    """
    with thread_pool(threads) as pool:
        recipe = make_recipe(
            method=method, base=base, targets=targets, out=out, parameters=parameters, dtype=dtype,
            max_shard_bytes=max_shard_bytes, pool=pool,
        )  # fmt: skip
    if recipe.rounds:
        progress.say(
            f"merge {recipe.method_name}: the targets have more bits than the fused weights, whose rounding drops small "
            "updates; merge.dtype: float32 keeps them"
        )
    return recipe, _earlier(Path(out) / REPORT_FILE) if begin(recipe, claimed) else None


@contextmanager
def thread_pool(threads: int | None) -> Iterator[ThreadPoolExecutor]:
    """A pool of worker threads for a `with` block; an error cancels what has not begun."""
    pool = new_thread_pool(threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def begin(recipe: MergeRecipe, claimed: bool = False) -> bool:
    """Make the work folder, or find what an earlier call left there.

    Returns:
        True if the output is already whole and of this very recipe.
    Raises:
        ArtifactError: the output folder holds another model.
    """
    out = Path(recipe.out)
    report, work = _earlier(out / REPORT_FILE), out / WORK_FOLDER
    if not work.is_dir():
        is_own = report is not None and report.get("fingerprint") == recipe.fingerprint
        if is_own and all((out / recipe.shard_name(index)).is_file() for index in range(len(recipe.shards))):
            return True
        model_files = [path.name for pattern in ("config.json", "*.safetensors") for path in out.glob(pattern)]
        if (
            model_files and not is_own and not claimed
        ):  # of its own, shards may have been taken away because they were damaged
            raise ArtifactError(
                f"{out}: already holds a model ({model_files[0]}) of another merge; delete it, or choose another folder"
            )
    elif (_earlier(work / "plan.json") or {}).get("fingerprint") != recipe.fingerprint:
        shutil.rmtree(work)
        for path in out.glob("model*.safetensors"):  # moved up by that unfinished merge
            path.unlink()
    with storage_errors(out):
        work.mkdir(parents=True, exist_ok=True)
        for path in work.glob("*.partial"):  # left by a merge that was killed
            path.unlink()
        write_json(str(work / "plan.json"), {"fingerprint": recipe.fingerprint})
    remove_damaged(recipe)
    return False


def _earlier(path: Path) -> dict[str, Any] | None:
    """A document of an earlier merge; None where there is none, or where it is damaged: the merge begins anew."""
    try:
        document = read_json(str(path)) if path.is_file() else None
    except ArtifactError:
        return None
    return document if isinstance(document, dict) else None


def finish(recipe: MergeRecipe, *, companions: str | Path | None = None) -> dict[str, Any]:
    """Put the whole shards and the small files into place; may be called again after a kill.

    Raises:
        ArtifactError: a shard is not whole.
    """
    out, work = Path(recipe.out), Path(recipe.out) / WORK_FOLDER
    records: dict[str, Any] = {}
    for index in range(len(recipe.shards)):
        record = read_shard_record(recipe, index)
        if record is None:
            raise ArtifactError(f"{work}: shard {recipe.shard_name(index)} is not whole; merge it before finishing")
        records.update(record)
    report = make_report(recipe, records)
    with storage_errors(out):
        for index in range(len(recipe.shards)):
            if (work / recipe.shard_name(index)).is_file():
                (work / recipe.shard_name(index)).replace(out / recipe.shard_name(index))
        if len(recipe.shards) > 1:
            write_json(str(out / INDEX_FILE), _index(recipe))
        put_companions(recipe, report, companions=companions)
        write_json(str(out / REPORT_FILE), report, indent=None)
        write_json(str(out / "config.json"), _config(recipe))
        shutil.rmtree(work)
    return report


def put_companions(recipe: MergeRecipe, report: dict[str, Any], *, companions: str | Path | None) -> None:
    """Write what stands beside the weights, config.json apart; again where an earlier call wrote it."""
    out = Path(recipe.out)
    with storage_errors(out):
        _copy_companions(Path(companions or recipe.base), Path(recipe.base), out)
        (out / "README.md").write_text(model_card(recipe, report), encoding="utf-8")


def _index(recipe: MergeRecipe) -> dict[str, Any]:
    weight_map = {
        tensor.name: recipe.shard_name(index) for index, shard in enumerate(recipe.shards) for tensor in shard
    }
    return {
        "metadata": {"total_size": sum(tensor.num_bytes for shard in recipe.shards for tensor in shard)},
        "weight_map": dict(sorted(weight_map.items())),
    }


def _copy_companions(companions: Path, base: Path, out: Path) -> None:
    for name in COMPANIONS:
        if (companions / name).is_file():
            shutil.copyfile(companions / name, out / name)
    for path in base.glob("*.py"):  # code of an architecture that transformers does not have
        shutil.copyfile(path, out / path.name)


def _config(recipe: MergeRecipe) -> dict[str, Any]:
    config = read_model_config(Path(recipe.base))
    if recipe.dtype in DTYPES:
        config["dtype" if "torch_dtype" not in config else "torch_dtype"] = recipe.dtype
    return config
