"""Paths in a run file: what a user wrote in; the path that every stage reads, or a refusal, out.

`~` is the home folder of whoever reads the run file, and is put in here and nowhere else, so that no two places can read one
path differently. Variables of the environment are not put in: they differ between the machines of a run.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

_VARIABLE = re.compile(r"(^|/)\$(\{[A-Za-z_]\w*\}|[A-Za-z_]\w*)")


def expand(path: str) -> str:
    """A path or URL with `~` or `~user` at its head replaced.

    Raises:
        ValueError: no such user, or a part that begins with a variable of the environment.
    """
    if match := _VARIABLE.search(path):
        name = match[0].lstrip("/")
        raise ValueError(
            f"found the variable {name}, which is not put in here: expected the path itself; give it on the command line, where "
            f'the shell puts it in: --set "field={path}"'
        )
    if not path.startswith("~"):
        return path
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        user = path.split("/")[0]
        raise ValueError(f"found {user}, expected a user with a home folder; write the whole path, from / on")
    return expanded


def expand_within(values: dict[str, Any]) -> dict[str, Any]:
    """Free-form arguments in which every text that begins with `~/` is a path, at whatever depth."""
    return {key: _expanded(value) for key, value in values.items()}


def _expanded(value: Any) -> Any:
    if isinstance(value, dict):
        return expand_within(value)
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    return expand(value) if isinstance(value, str) and (value == "~" or value.startswith("~/")) else value


def _expand_path(path: Path) -> Path:
    return Path(expand(str(path)))


PathText = Annotated[str, AfterValidator(expand)]
"""A path or URL, `~` replaced."""
FolderPath = Annotated[Path, AfterValidator(_expand_path)]
"""A local path, `~` replaced."""
