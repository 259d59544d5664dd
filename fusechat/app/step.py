"""One step of a run: what it leaves, what makes it, and what can be known to be wrong with it before."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..config import RunConfig
from ..config.artifacts import ArtifactEntry
from ..progress import Progress
from ..storage.artifact import RECORD_FILE
from ..storage.files import read_json

Make = Callable[[RunConfig, Progress], Any]
Check = Callable[[RunConfig], None]


def check_nothing(config: RunConfig) -> None:
    """Of a step that nothing can be known to be wrong with before it runs."""


@dataclass(frozen=True)
class Step:
    """One unit that leaves artifacts."""

    stage: str
    name: str
    artifacts: tuple[ArtifactEntry, ...]
    """That it leaves."""
    make: Make
    check: Check = check_nothing
    """Raises a UserError for what can be known to be wrong before anything runs."""

    @property
    def label(self) -> str:
        return f"{self.stage} {self.name}".rstrip()

    def records(self) -> list[Any]:
        """The record of each artifact, None where it is not finished (of whatever plan: the stage itself compares)."""
        return [read_json(f"{artifact.url}/{RECORD_FILE}") for artifact in self.artifacts]
