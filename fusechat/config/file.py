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


def load_file(path: str | Path, overrides: Sequence[tuple[str, Any]], root: type[Loaded]) -> Loaded:
    """Read a YAML file of some root section and put other values in place of some.

    Args:
        overrides: (`section.field`, value) pairs, applied in order.
    Raises:
        ConfigError: a missing or broken file, an unknown key (the nearest valid one is named), a value out of range.
    """
    path = Path(path).expanduser()
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such run file; see examples/ for some") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not a readable YAML file: {error}") from None
    if not isinstance(values, dict):
        expected = ", ".join(list(root.model_fields)[:4])
        raise ConfigError(f"{path}: found {type(values).__name__}, expected keys such as {expected}")
    for key, value in overrides:
        _apply_override(values, key, value)
    _check_characters(values, path, "", set())
    try:
        return root.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(path, item, root) for item in error.errors())) from None


def read_overrides(texts: Sequence[str]) -> list[tuple[str, Any]]:
    """`section.field=value` as the command line takes it, the value being YAML, as (key, value) pairs.

    Raises:
        ConfigError: a text of another form.
    """
    found = []
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set {text}: expected section.field=value")
        try:
            found.append((key, yaml.safe_load(value)))
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {text}: the value is not readable as YAML: {error}") from None
    return found


def _apply_override(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    node: Any = values
    for depth, part in enumerate(parents):
        place = _place(node, part)
        if place is None:
            raise ConfigError(f"override of {key}: {'.'.join(parents[:depth]) or 'the file'} has no {part!r}")
        # A copy: YAML's aliases, and values that an earlier override brought, are one object in several places.
        node[place] = copy.copy(node.get(place, {}) if isinstance(node, dict) else node[place])
        node = node[place]
    place = _place(node, last)
    if place is None:
        raise ConfigError(f"override of {key}: {'.'.join(parents)} is {type(node).__name__}, it has no {last!r}")
    node[place] = value


def _check_characters(node: Any, path: Path, key: str, seen: set[int]) -> None:
    """Raises ConfigError for a text that no file, page or tokenizer takes: prompts and names stand in a run file.

    Args:
        seen: what was looked at: YAML's aliases can name one object a billion times, or within itself.
    """
    if id(node) in seen:
        return
    if isinstance(node, dict | list):
        seen.add(id(node))
    if isinstance(node, dict):
        for name, value in node.items():
            _check_characters(name, path, key, seen)
            _check_characters(value, path, f"{key}.{name}".lstrip("."), seen)
    elif isinstance(node, list):
        for number, value in enumerate(node):
            _check_characters(value, path, f"{key}.{number}", seen)
    elif isinstance(node, str):
        try:
            node.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"{path}: {key or 'run file'}: lone surrogate {node[error.start]!a} at character {error.start}, expected whole "
                "characters; write the character itself"
            ) from None


def _place(node: Any, part: str) -> Any:
    """The key or index that a part of an override's key means in a node; None where it can mean none."""
    if isinstance(node, dict):
        return part
    return int(part) if isinstance(node, list) and part.isdigit() and int(part) < len(node) else None


def _explain(path: Path, item: Any, root: type[BaseModel]) -> str:
    location = ".".join(str(part) for part in item["loc"])
    if item["type"] in ("extra_forbidden", "model_type") and (hint := moved_hint(location)):
        return f"{path}: {location}: {hint}"
    if item["type"] != "extra_forbidden":
        found = f" (found {item['input']!r})" if not isinstance(item["input"], dict) else ""
        return f"{path}: {location or 'run file'}: {item['msg']}{found}"
    fields = sorted(_fields_at(item["loc"][:-1], root))
    near = difflib.get_close_matches(str(item["loc"][-1]), fields, n=1, cutoff=0.5)
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
