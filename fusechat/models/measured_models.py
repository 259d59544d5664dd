"""Which models a run measures: their ids and where things lie in; folders and fingerprints out.

Knows nothing about what is measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import CONTROL, ModelSection
from ..config.layout import RunLayout
from ..storage import artifact
from ..storage.artifact import Artifact
from . import model_files
from .digests import text_digest
from .resolved_model import resolve


@dataclass(frozen=True)
class MeasuredModel:
    """One model of a run: `role` is pivot, sft, target, fused, round or source; `name` the short name that the run file gives,
    or the round's number.
    """

    role: str
    name: str
    folder: Path
    fingerprint: str
    """Of the artifact, or of the files of a model that came from elsewhere."""
    reader: str
    """Whose tokenizer, template and tokens artifact it reads: the pivot's name or the source's."""
    artifact: Artifact | None = None
    """The artifact of a target or the fused model."""

    @property
    def id(self) -> str:
        """As in `evaluation.models`; also a file name."""
        return f"{self.role}.{self.name}" if self.role in ("target", "round", "source") else self.role

    @property
    def label(self) -> str:
        """What people read."""
        return {"sft": "SFT-only (sft)", "fused": "fused"}.get(self.role, f"{self.role} {self.name}")

    @property
    def is_given(self) -> bool:
        """Whether it came from elsewhere: the pivot or a source."""
        return self.artifact is None


def measured_models(
    layout: RunLayout, pivot: ModelSection, sources: Sequence[ModelSection], ids: Sequence[str]
) -> list[MeasuredModel]:
    """The models to measure, in the order of their ids.

    Args:
        ids: `pivot`, `sft`, `target.NAME`, `fused`, `round.NUMBER`, `source.NAME`.
    Raises:
        ArtifactError: a target or the fused model is not finished.
        ModelError: a pivot or source that is not there.
    """
    given = {"pivot": pivot, **{f"source.{source.name}": source for source in sources}}
    return [
        _given_model(layout, model_id, given[model_id])
        if model_id in given
        else _trained_model(layout, model_id, pivot.name)
        for model_id in ids
    ]


def _given_model(layout: RunLayout, model_id: str, section: ModelSection) -> MeasuredModel:
    model = resolve(section, layout.digests_path)
    fingerprint = text_digest(str(model.digests))
    return MeasuredModel(model_id.partition(".")[0], model.name, model.folder, fingerprint, model.name)


def _trained_model(layout: RunLayout, model_id: str, reader: str) -> MeasuredModel:
    role, _, name = model_id.partition(".")
    if role == "round":
        folder = layout.round_student_path(int(name))
    else:
        folder = layout.fused_path if role == "fused" else layout.target_path(name or CONTROL)
    made = artifact.load(folder, "fused" if role == "fused" else "target")
    return MeasuredModel(role, name or role, folder, made.fingerprint, reader, made)


def opened_section(model: MeasuredModel, reader: ModelSection) -> ModelSection:
    """What a worker opens: one that came from elsewhere is looked up where the worker stands, as its section says.

    Args:
        reader: the section of the model that it reads with.
    """
    if model.is_given:
        return reader
    return reader.model_copy(update={"name": model.id, "model": str(model.folder), "revision": None})


def count_parameters(folder: Path) -> int | None:
    """Numbers in a model's files of weights, read from their heads alone; None where they are of another form."""
    from safetensors import safe_open

    files = model_files.weight_files(folder)
    if not files:
        return None
    count = 0
    for file in files:
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # no dict
                size = 1
                for length in tensors.get_slice(name).get_shape():
                    size *= length
                count += size
    return count
