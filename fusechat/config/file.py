"""Reading a YAML file into a root section: overrides applied, mistakes named with the nearest valid key.

Knows nothing about what the sections are, but how fields of earlier files are called now.
"""

import copy
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ..errors import ConfigError
from .moved import moved_hint
from .section import Section

Loaded = TypeVar("Loaded", bound=Section)

MAX_BYTES = 16 * 2**20
"""Bytes of a run file; it is read into memory."""
MAX_VALUES, MAX_DEPTH = 100_000, 50
"""Values of a run file, keys among them and aliases written out, and how deep they stand."""
MAX_INTEGER_BITS = 128
MAX_NAMED, MAX_SHOWN = 20, 200
"""Mistakes named in one message, and characters of a value shown there."""


def load_file(path: str | Path, overrides: Sequence[tuple[str, Any]], root: type[Loaded]) -> Loaded:
    """Read a YAML file of some root section and put other values in place of some.

    Args:
        overrides: (`section.field`, value) pairs, applied in order.
    Raises:
        ConfigError: a missing or broken file, an unknown key (the nearest valid one is named), a value out of range.
    """
    try:
        path = Path(path).expanduser()
        values = _parsed(_text(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such run file; see examples/ for some") from None
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: no home folder for the user behind a ~
        raise ConfigError(f"{_cut(str(path))}: not a readable YAML file: {_cut(str(error))}") from None
    if not isinstance(values, dict):
        expected = ", ".join(list(root.model_fields)[:4])
        raise ConfigError(f"{path}: found {type(values).__name__}, expected keys such as {expected}")
    for key, value in overrides:
        _apply_override(values, key, value)
    _check_values(values, path)
    try:
        return root.model_validate(values)
    except ValidationError as error:
        lines = [_explain(path, item, root) for item in error.errors()]
        rest = [f"and {len(lines) - MAX_NAMED:,} more"] if len(lines) > MAX_NAMED else []
        raise ConfigError("\n".join([*lines[:MAX_NAMED], *rest])) from None


def read_overrides(texts: Sequence[str]) -> list[tuple[str, Any]]:
    """`section.field=value` as the command line takes it, the value being YAML, as (key, value) pairs.

    Raises:
        ConfigError: a text of another form.
    """
    pairs = []
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set {text}: expected section.field=value")
        try:
            pairs.append((key, _parsed(value)))
        except ValueError as error:
            raise ConfigError(f"--set {key}: the value is not readable as YAML: {error}") from None
    return pairs


def _text(path: Path) -> str:
    """The run file's text.

    Raises:
        OSError, ValueError: it cannot be read, or is something that no run file is: a device or pipe, which may never end.
    """
    if path.exists() and not path.is_file():
        raise ValueError("found a folder, device or pipe, expected a file; give the file's own path")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"found {path.stat().st_size:,} bytes, expected at most {MAX_BYTES:,}; is it another file?")
    return path.read_text(encoding="utf-8")


def _parsed(text: str) -> Any:
    """The values of a YAML text.

    Raises:
        ValueError: it is not YAML; a place is named, but no text of the file, which may be a secret.
    """
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{place}{error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(ascii(str(error))[1:-1]) from None
    except RecursionError:
        raise ValueError(f"nested too deeply, expected at most {MAX_DEPTH} levels") from None
    # What the library raises where a value is not of the type that its tag or its form says.
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"a value is not what its form or tag says ({type(error).__name__}: {_shown(error)})"
        ) from None


def _shown(value: object) -> str:
    """A value, cut short, for messages."""
    try:
        text = ascii(value) if isinstance(value, str) else str(value)
    except (ValueError, RecursionError):  # a number too long to be written
        text = type(value).__name__
    return _cut(text)


def _name(key: object) -> str:
    return _cut(key) if isinstance(key, str) and key.isascii() else _shown(key)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def _apply_override(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    node: Any = values
    for depth, part in enumerate(parents):
        place = _place(node, part)
        if place is None:
            parent = _cut(".".join(parents[:depth])) or "the file"
            raise ConfigError(f"override of {_cut(key)}: {parent} has no {_cut(part)!r}")
        # A copy: YAML's aliases, and values that an earlier override brought, are one object in several places.
        node[place] = copy.copy(node.get(place, {}) if isinstance(node, dict) else node[place])
        node = node[place]
    place = _place(node, last)
    if place is None:
        parent = _cut(".".join(parents))
        raise ConfigError(f"override of {_cut(key)}: {parent} is {type(node).__name__}, it has no {_cut(last)!r}")
    node[place] = value


def _check_values(values: Any, path: Path) -> None:
    """Raises ConfigError for what no file, page or tokenizer takes: prompts and names stand in a run file.

    YAML's aliases can name one object a billion times, or within itself: each time counts, as whatever writes the values down
    would write it each time.
    """
    waiting: list[tuple[Any, str, int]] = [(values, "", 0)]
    num_values = 0
    while waiting:
        node, key, depth = waiting.pop()
        num_values += 1
        if depth > MAX_DEPTH or num_values > MAX_VALUES:
            limit = f"{MAX_DEPTH} levels" if depth > MAX_DEPTH else f"{MAX_VALUES:,} values"
            raise ConfigError(
                f"{path}: {key[:80]}: found more than {limit}, every alias written out; expected at most these: does an alias "
                "stand within itself?"
            )
        if isinstance(node, dict):
            waiting += ((name, key, depth + 1) for name in node)
            waiting += ((value, f"{key}.{_name(name)}".lstrip("."), depth + 1) for name, value in node.items())
        elif isinstance(node, list | tuple | set):
            waiting += ((value, f"{key}.{number}", depth + 1) for number, value in enumerate(node))
        else:
            _check_scalar(node, f"{path}: {key or 'run file'}")


def _check_scalar(value: Any, place: str) -> None:
    if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
        raise ConfigError(
            f"{place}: found a whole number of {value.bit_length():,} bits, expected one of at most "
            f"{MAX_INTEGER_BITS}; correct it"
        )
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"{place}: lone surrogate {value[error.start]!a} at character {error.start}, expected whole "
                "characters; write the character itself"
            ) from None


def _place(node: Any, part: str) -> Any:
    """The key or index that a part of an override's key means in a node; None where it can mean none."""
    if isinstance(node, dict):
        return part
    return int(part) if isinstance(node, list) and part.isdecimal() and int(part[:10]) < len(node) else None


def _explain(path: Path, item: Any, root: type[BaseModel]) -> str:
    location = ".".join(_cut(str(part)) for part in item["loc"])
    if item["type"] in ("extra_forbidden", "model_type") and (hint := moved_hint(location)):
        return f"{path}: {location}: {hint}"
    if item["type"] != "extra_forbidden":
        # What stands in the environment of nodes may be a secret.
        is_shown = not isinstance(item["input"], dict) and "env_vars" not in item["loc"]
        shown = f" (found {_cut(repr(item['input']))})" if is_shown else ""
        return f"{path}: {location or 'run file'}: {item['msg']}{shown}"
    fields = sorted(_fields_at(item["loc"][:-1], root))
    near = difflib.get_close_matches(str(item["loc"][-1])[:MAX_SHOWN], fields, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(fields)}"
    return f"{path}: {location}: unknown key; {hint}"


def _fields_at(location: tuple[Any, ...], root: type[BaseModel]) -> dict[str, Any]:
    model = root
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = section_type(model.model_fields[part].annotation) or model
    return model.model_fields


def section_type(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
