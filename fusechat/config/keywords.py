"""A function's parameters, checked against its signature: names, types and ranges. Knows no function.

Merge methods and rules of writing are plain functions; what a run file says for them is read by their own keyword arguments.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model

from ..errors import ConfigError


def keyword_names(function: Callable[..., Any]) -> list[str]:
    """Names of a function's keyword-only parameters."""
    return list(_keyword_parameters(function))


def check_keywords(function: Callable[..., Any], given: Mapping[str, Any], place: str) -> dict[str, Any]:
    """All keyword-only parameters of a function, defaults filled in.

    Args:
        place: where the values stand in the run file, such as `merge.parameters`.
    Raises:
        ConfigError: an unknown parameter (the nearest is named), a wrong type, a value out of range.
    """
    called = function_name(function)
    fields = {
        name: (parameter.annotation, ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in _keyword_parameters(function).items()
    }
    for name in given:
        if name not in fields:
            raise ConfigError(f"{place}.{name}: {called} has no such parameter; {nearest(name, fields)}")
    settings = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    model: Any = create_model(called, __config__=settings, **fields)  # type: ignore[call-overload]  # fields by name
    try:
        checked = model(**given)
    except ValidationError as error:
        lines = [_explain(place, called, item) for item in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None
    return {name: getattr(checked, name) for name in fields}


def function_name(function: Callable[..., Any]) -> str:
    """What a function or a callable object is called."""
    return str(getattr(function, "__name__", type(function).__name__))


def nearest(name: str, valid: Mapping[str, Any]) -> str:
    """A hint at the valid name that is nearest to one that was found."""
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    known = ", ".join(valid) or "none"
    return f"did you mean {near[0]!r}? Valid: {known}" if near else f"valid: {known}"


def _keyword_parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function, eval_str=True).parameters
    return {name: item for name, item in parameters.items() if item.kind == inspect.Parameter.KEYWORD_ONLY}


def _explain(place: str, called: str, item: Any) -> str:
    name = str(item["loc"][0]) if item["loc"] else ""
    return f"{place}.{name}: {called}: found {item['input']!r}: {item['msg']}"
