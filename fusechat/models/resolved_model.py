"""A model of the run as a step works with it: looked up and digested once, where the step begins."""

from dataclasses import dataclass
from pathlib import Path

from ..config import ModelSection
from . import model_files
from .digests import digests_of


@dataclass(frozen=True)
class ResolvedModel:
    """A pivot or source, its folder on this machine, and the digests of its files."""

    section: ModelSection
    folder: Path
    digests: dict[str, str]
    """`weights`, `config` and `tokenizer` -> SHA-256, as `digests_of` gives them."""

    @property
    def name(self) -> str:
        """Its short name in the run."""
        return self.section.name


def resolve(section: ModelSection, digests_path: Path) -> ResolvedModel:
    """Look a model up, and read the digests of its files.

    Args:
        digests_path: file that keeps digests from run to run.
    Raises:
        ModelError: the model is not there.
    """
    folder = model_files.resolve_model(section)
    return ResolvedModel(section, folder, digests_of(folder, digests_path))
