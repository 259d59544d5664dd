"""What decides an artifact, as far as the run file says it: each stage says this once for what it makes.

A stage claims its folder by it, together with the digests of files that it reads; `ablate` names shared folders by it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """Settings and parents of one artifact."""

    settings: dict[str, Any]
    """Plain values."""
    parents: dict[str, str]
    """Role -> key of an artifact that is read (`aligned/NAME`), as `RunLayout.place` takes it."""

    def with_files(self, **digests: Any) -> dict[str, Any]:
        """The settings, with digests of a model's files in place of where these lie."""
        return with_files(self.settings, **digests)


def with_files(settings: Mapping[str, Any], **digests: Any) -> dict[str, Any]:
    """What is said of a model, with digests of its files in place of where these lie: it may move, and work on it goes on."""
    return {key: value for key, value in settings.items() if key not in ("model", "revision")} | digests
