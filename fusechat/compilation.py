"""Compiled loops whose machine code is kept on disk where a folder may be written, and is made anew by every process where not.

Containers run as any user over packages that are read-only; numba refuses to import a cached function there.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, overload

P = ParamSpec("P")
R = TypeVar("R")


@overload
def kept(function: Callable[P, R], **options: Any) -> Callable[P, R]: ...
@overload
def kept(function: None = None, **options: Any) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def kept(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """numba's `njit` with its cache, as `@kept` or `@kept(nogil=True)`; the loop keeps its signature for the type checker."""
    if function is None:
        return lambda wrapped: kept(wrapped, **options)
    from numba import njit

    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # numba finds no folder that it may write to
        return njit(**options)(function)
