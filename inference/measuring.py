"""How models are measured, whatever is asked of them: what decides their engines and networks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fusechat.config import ClusterSection, ExtractionSection, HeldOutSection, ModelSection
from fusechat.models.resolved_model import ResolvedModel

from .engine.engine_settings import engine_settings
from .serving.faces import FaceName, recipe_of


@dataclass(frozen=True)
class MeasuringSettings:
    """What of a run file decides how models are measured."""

    held_out: HeldOutSection
    extraction: ExtractionSection
    """k, grid, capture and shards of the rows."""
    cluster: ClusterSection

    def engine_of(self, reader: ModelSection, dtype: str | None = None) -> ModelSection:
        """The model's section with the dtype that models are measured in, or another one."""
        update = {"dtype": dtype or self.held_out.dtype}
        return reader.model_copy(update={"engine": reader.engine.model_copy(update=update)})

    def recipe(self, reader: ModelSection) -> dict[str, Any]:
        """All that decides what a model's engine says, beside the model."""
        return {
            **engine_settings(self.engine_of(reader).engine),
            "float32_on_cpus": self.held_out.dtype == "auto",
            "capture": self.extraction.capture,
        }

    def served_recipes(
        self, face: FaceName, model: ResolvedModel, template: str, engine: Mapping[str, Any]
    ) -> list[str]:
        """Recipes of an engine of a service that says what the engine would in which a model is measured.

        Args:
            model: a pivot or source, with its section as the run has it.
            template: that it reads under.
            engine: what the service says of its engine: on a CPU whose checkpoint is in half precision, `auto` is not what
                is measured in.
        """
        dtype = self.held_out.dtype
        is_wide = dtype == "auto" and engine.get("device") == "cpu"
        dtypes = ["float32"] if is_wide else [dtype]
        if is_wide and engine.get("dtype") == "float32":
            dtypes.append("auto")
        sections = [self.engine_of(model.section, one) for one in dtypes]
        return [recipe_of(face, replace(model, section=section), template, self.extraction) for section in sections]
