"""What decides an artifact, as far as the run file says it: each stage says this once for what it makes.

A stage claims its folder by it, together with the digests of files that it reads; `ablate` names shared folders by it.
"""

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
        """The settings, digests of the model's files in place of where these lie: a model may move, and work on it goes on."""
        return {key: value for key, value in self.settings.items() if key not in ("model", "revision")} | digests
