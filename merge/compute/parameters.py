"""A method's parameters, checked against its signature: names, types and ranges. Knows no method."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import ConfigDict, ValidationError, create_model

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
        raise ConfigError(f"merge.method: found {method!r}; {_nearest(str(method), METHODS)}")
    return METHODS[method]


def parameter_names(method: Method) -> list[str]:
    """Names of a method's parameters."""
    return list(_keyword_parameters(method))


def check_parameters(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a method, defaults filled in.

    Raises:
        ConfigError: an unknown parameter (the nearest is named), a wrong type, a value out of range.
    """
    fields = {
        name: (parameter.annotation, ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in _keyword_parameters(method).items()
    }
    for name in given:
        if name not in fields:
            raise ConfigError(
                f"merge.parameters.{name}: {_name(method)} has no such parameter; {_nearest(name, fields)}"
            )
    settings = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    model: Any = create_model(_name(method), __config__=settings, **fields)  # type: ignore[call-overload]  # fields by name
    try:
        checked = model(**given)
    except ValidationError as error:
        lines = [_explain(_name(method), item) for item in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None
    return {name: getattr(checked, name) for name in fields}


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


def _keyword_parameters(method: Method) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(method, eval_str=True).parameters
    return {name: item for name, item in parameters.items() if item.kind == inspect.Parameter.KEYWORD_ONLY}


def _name(method: Method) -> str:
    return str(getattr(method, "__name__", type(method).__name__))


def _nearest(name: str, valid: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    known = ", ".join(valid) or "none"
    return f"did you mean {near[0]!r}? Valid: {known}" if near else f"valid: {known}"


def _explain(method: str, item: Any) -> str:
    name = str(item["loc"][0]) if item["loc"] else ""
    return f"merge.parameters.{name}: {method}: found {item['input']!r}: {item['msg']}"
