"""A method's parameters, checked against its signature and by a trial. Knows no method."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusechat.config.keywords import check_keywords, keyword_names, nearest
from fusechat.errors import ConfigError

from ..group import BlockMerge, TensorGroup
from ..methods import METHODS, Method


def find_method(method: str | Method) -> Method:
    """The function of a method's name; a function is handed back.

    Raises:
        ConfigError: no method of that name; the nearest is named.
    """
    if callable(method):
        return method
    if method not in METHODS:
        raise ConfigError(f"merge.method: found {method!r}; {nearest(str(method), METHODS)}")
    return METHODS[method]


def parameter_names(method: Method) -> list[str]:
    """Names of a method's parameters."""
    return keyword_names(method)


def check_parameters(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a method, defaults filled in.

    Raises:
        ConfigError: an unknown parameter (the nearest is named), a wrong type, a value out of range.
    """
    return check_keywords(method, given, "merge.parameters")


def try_method(method: Method, parameters: Mapping[str, Any], target_names: list[str]) -> None:
    """Run a method on a tensor of zeros, so that parameters that do not fit the targets show before any work.

    Raises:
        ConfigError: from the method.
    """
    group = TensorGroup("trial", _Zeros(), [_Zeros() for _ in target_names], target_names)
    block_merge: BlockMerge = method(group, **parameters)
    group.map(block_merge.merge)


class _Zeros:
    shape: tuple[int, ...] = (2,)

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        out[:] = 0

    def read_ahead(self) -> None:
        pass
