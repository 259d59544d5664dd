"""EleutherAI's evaluation harness: a model and a task in; each figure with its standard error out.

Knows nothing about the run or the report.
"""

import os
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusechat.errors import ConfigError
from fusechat.models.digests import text_digest

if TYPE_CHECKING:
    from lm_eval.api.model import LM

DRAWS = 1000
"""Bootstrap draws of a standard error that has no formula; without any, the harness gives no standard error at all."""


def check(tasks: list[str], folder: Path | None, *, unsafe_code: bool = False) -> None:
    """Refuse tasks that cannot be run, before any model is loaded.

    Args:
        folder: of further task files.
        unsafe_code: whether tasks may run code that the models write.
    Raises:
        ConfigError: no such folder, the harness is not installed, or does not have a task, or one would run such code.
    """
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"evaluation.lm_eval.folder: found no folder {folder}; expected one of task files, or none")
    index = _manager(folder).task_index
    for task in tasks:
        if task not in index:
            raise ConfigError(
                f"evaluation.lm_eval.tasks: found {task!r}, which the harness does not have; name one of its tasks, or put its "
                "file into evaluation.lm_eval.folder"
            )
        unsafe = sorted(_unsafe_tasks(index, task, set()))
        if unsafe and not unsafe_code:
            raise ConfigError(
                f"evaluation.lm_eval.tasks: {task!r} runs code that the models write ({', '.join(unsafe[:3])}); leave it out, or allow it "
                "on this machine with evaluation.lm_eval.unsafe_code: true"
            )


def _unsafe_tasks(index: dict[str, Any], name: str, seen: set[str]) -> set[str]:
    """The tasks that a task, group or tag holds which are marked to run generated code."""
    entry = index.get(name)
    if entry is None or name in seen:
        return set()
    seen.add(name)
    settings = entry.cfg or {}
    unsafe = {name} if settings.get("unsafe_code") else set()
    members = settings.get("task") if entry.kind.name == "GROUP" else []
    for member in members if isinstance(members, list) else []:
        inline = member if isinstance(member, dict) else {"task": member}
        if inline.get("unsafe_code"):
            unsafe.add(str(inline.get("task")))
        unsafe |= _unsafe_tasks(index, str(inline.get("task")), seen)
    if entry.kind.name == "TAG":
        for other, tagged in index.items():
            unsafe |= _unsafe_tasks(index, other, seen) if name in tagged.tags else set()
    return unsafe


def version() -> str:
    """The harness's version."""
    return metadata.version("lm_eval")


def run_tasks(
    model: "LM", *, tasks: list[str], folder: Path | None, limit: int | None, seed: int, unsafe_code: bool = False
) -> dict[str, dict[str, Any]]:
    """Run tasks on one model, asked under its chat template.

    Args:
        limit: questions of each task; None: all.
    Returns:
        `task, metric` -> value, error (its standard error; null where the harness gives no number) and questions.
    """
    if unsafe_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # the metric that runs the code asks for this too
    os.environ["DISABLE_MULTIPROC"] = "1"  # draws here, not in forks of a process that has an engine's threads
    import lm_eval

    results = lm_eval.simple_evaluate(
        model, tasks=list(tasks), task_manager=_manager(folder), limit=limit, apply_chat_template=True, bootstrap_iters=DRAWS,
        log_samples=False, random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
        confirm_run_unsafe_code=unsafe_code,
    )  # fmt: skip
    figures = {}
    for task, entries in results["results"].items():
        questions = results["n-samples"].get(task, {}).get("effective")
        for name, value in entries.items():
            metric, _, variant = name.partition(",")
            if not isinstance(value, int | float) or "_stderr" in metric or metric == "sample_len":
                continue
            error = entries.get(f"{metric}_stderr,{variant}")
            label = f"{task}, {metric}" + ("" if variant in ("", "none") else f", {variant}")
            is_known = isinstance(error, int | float)
            figures[label] = {
                "value": float(value),
                "error": float(error) if is_known else None,
                "questions": questions,
            }
    return figures


def tasks_digest(folder: Path | None) -> str:
    """Digest of the task files of a folder; empty without one."""
    if folder is None:
        return ""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    # Python writes its caches there when the harness reads a task's functions.
    kept = sorted((str(name), path) for name, path in files.items() if "__pycache__" not in name.parts)
    return text_digest("".join(f"{name} {path.read_bytes().hex()}\n" for name, path in kept))


@cache
def _manager(folder: Path | None) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            f"evaluation.lm_eval.tasks: the harness cannot be imported ({error}); install it: pip install 'fusechat[lm-eval]'"
        ) from None
    return TaskManager(include_path=None if folder is None else str(folder))
