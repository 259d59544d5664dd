"""Reading a YAML file into a root section: overrides applied, mistakes named with the nearest valid key.

Knows nothing about what the sections are.
"""

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from .config_section import Section
from .errors import ConfigError

Loaded = TypeVar("Loaded", bound=Section)


def load_file(path: str | Path, overrides: list[str] | tuple[str, ...], root: type[Loaded]) -> Loaded:
    """Read a YAML file of some root section and apply `section.field=value` overrides, whose values are YAML.

    Raises:
        ConfigError: a missing or broken file, an unknown key (the nearest valid one is named), a value out of range.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such run file; see examples/ for some") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not a readable YAML file: {error}") from None
    if not isinstance(values, dict):
        expected = ", ".join(list(root.model_fields)[:4])
        raise ConfigError(f"{path}: found {type(values).__name__}, expected keys such as {expected}")
    for override in overrides:
        _apply_override(values, override)
    try:
        return root.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(path, item, root) for item in error.errors())) from None


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: expected section.field=value")
    *parents, last = key.split(".")
    node: Any = values
    for depth, part in enumerate(parents):
        if isinstance(node, dict):
            node = node.setdefault(part, {})
        elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            raise ConfigError(f"--set {override}: {'.'.join(parents[:depth])} has no {part!r}")
    value = yaml.safe_load(text)
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"--set {override}: {'.'.join(parents)} is {type(node).__name__}, it has no {last!r}")


def _explain(path: Path, item: Any, root: type[BaseModel]) -> str:
    location = ".".join(str(part) for part in item["loc"])
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
