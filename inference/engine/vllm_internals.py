"""The inner parts of vLLM that are used or replaced, each with the reason; all else takes its documented classes.

Tests hold the names against the installed release (tests/inference/test_vllm_internals.py). Imports vLLM inside its
functions alone: the environment must be set before, and `plugin.py` is loaded by every vLLM process.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any


def copy_config_rule(architecture: str, name: str) -> None:
    """Let the checks and settings that vLLM makes for an architecture hold for the class that scores, too: it looks them up by name."""
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    if architecture in MODELS_CONFIG_MAP:
        MODELS_CONFIG_MAP[name] = MODELS_CONFIG_MAP[architecture]


def known_class(architecture: str) -> Any | None:
    """vLLM's class of an architecture, or None. Its public `resolve_model_cls` wants a whole configuration of an engine."""
    from vllm.model_executor.models import ModelRegistry

    registered = ModelRegistry.models.get(architecture)
    return registered.load_model_cls() if registered else None


def is_known(name: str) -> bool:
    """Whether a class is registered under this name; `get_supported_archs` lists them all for each question."""
    from vllm.model_executor.models import ModelRegistry

    return name in ModelRegistry.models


def replace_logits_processors(model: Any, replacement: Callable[[Any], Any]) -> list[Any]:
    """Put a replacement in the place of each LogitsProcessor of a model; gives the replacements.

    A model makes its processor itself and gathers the logits of all ranks; no argument keeps them on their rank.
    """
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    replaced: dict[int, Any] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LogitsProcessor):
                if id(child) not in replaced:
                    replaced[id(child)] = replacement(child)
                setattr(parent, name, replaced[id(child)])
    return list(replaced.values())


def chunks_of(state: Any) -> list[Any]:
    """What a pooler keeps of a request between its prefill chunks: vLLM's pooling state has this one list for it."""
    chunks: list[Any] = state.hidden_states_cache
    return chunks


def shut_down(engine: Any) -> None:
    """End an engine; LLMEngine itself has no call for it."""
    engine.engine_core.shutdown()


@contextlib.contextmanager
def guarded_kernel_scan() -> Iterator[None]:
    """Start an engine within this: vLLM's CPU platform then asks every attribute of every loaded module for its `__dict__`.

    It trips over objects that answer to any name (numba's handle of LLVM gives a C function) or to none (Flask's proxies
    raise outside of a request). So their types are asked instead, which say whether an instance has a `__dict__` at all.
    A process that had an engine was looked through already: modules that came since took the replaced kernels from where they
    are defined. So it is not done again, which saves a third of the next start.
    """
    try:
        from vllm.triton_utils import dispatcher as scan
    except ImportError:  # a vLLM that has no such scan
        yield
        return
    vars(scan)["hasattr"] = _has_attribute  # found before the built-in one
    look_through = scan._rebind_kernels
    if scan._registry:
        vars(scan)["_rebind_kernels"] = lambda overrides: None
    try:
        yield
    finally:
        del vars(scan)["hasattr"]
        vars(scan)["_rebind_kernels"] = look_through


@contextlib.contextmanager
def imports_stay_frozen() -> Iterator[None]:
    """Start or end an engine within this: it then leaves alone what Python's garbage collection passes over.

    vLLM freezes all objects when an engine has started and thaws all when it ends, those of the imports too, and collects six
    times around the two: half a second of CPU each time that it looks through the imports. What `without_garbage_collection` froze
    stays frozen, and the engine's own objects never are, so that its end can free them.
    """
    freeze, thaw = gc.freeze, gc.unfreeze
    gc.freeze = gc.unfreeze = lambda: None
    try:
        yield
    finally:
        gc.freeze, gc.unfreeze = freeze, thaw


def _has_attribute(value: Any, name: str) -> bool:
    return type(value).__dictoffset__ != 0 if name == "__dict__" else hasattr(value, name)
