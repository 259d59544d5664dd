"""How models are measured, whatever is asked of them: what decides their engines and networks."""

from dataclasses import dataclass
from typing import Any

from fusechat.config import ClusterSection, ExtractionSection, HeldOutSection, ModelSection

from .engine.engine_worker import engine_settings


@dataclass(frozen=True)
class MeasuringSettings:
    """What of a run file decides how models are measured."""

    held_out: HeldOutSection
    extraction: ExtractionSection
    """k, grid, capture and shards of the rows."""
    cluster: ClusterSection

    def engine_of(self, reader: ModelSection) -> ModelSection:
        """The model's section with the dtype that models are measured in."""
        return reader.model_copy(update={"engine": reader.engine.model_copy(update={"dtype": self.held_out.dtype})})

    def recipe(self, reader: ModelSection) -> dict[str, Any]:
        """All that decides what a model's engine says, beside the model."""
        return {
            **engine_settings(self.engine_of(reader).engine),
            "float32_on_cpus": self.held_out.dtype == "auto",
            "capture": self.extraction.capture,
        }
