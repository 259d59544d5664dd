"""The door of the harness: tasks and a measured model in, an artifact of its figures out."""

from functools import partial
from typing import Any

from fusechat.config import ModelSection
from fusechat.config.evaluation import LmEvalSection
from fusechat.config.layout import RunLayout
from fusechat.config.recipe import Recipe
from fusechat.models.measured_models import MeasuredModel, opened_section
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact, Claim
from fusechat.storage.files import read_json, write_json
from fusechat.storage.work import Needs, Work

from ..measuring import MeasuringSettings
from . import tasks
from .worker import HarnessInputs, HarnessWorker

FIGURES_FILE = "figures.json"


def check(section: LmEvalSection) -> None:
    """Refuse what can be known before a model is loaded.

    Raises:
        ConfigError: the harness is not installed or does not have a task, or one runs code without leave.
    """
    if section.tasks:
        tasks.check(section.tasks, section.folder, unsafe_code=section.unsafe_code)


def prepare(
    layout: RunLayout,
    model: MeasuredModel,
    reader: ModelSection,
    section: LmEvalSection,
    settings: MeasuringSettings,
    *,
    seed: int,
) -> list[Work]:
    """Claim the folder of a model's figures; give what is left of it, a unit for each task.

    Args:
        reader: the model of the run whose tokenizer and template it is read with.
    Raises:
        ArtifactError: another recipe's figures stand in the folder.
    """
    if not section.tasks:
        return []
    inputs = HarnessInputs(
        model=opened_section(model, settings.engine_of(reader)),
        reader=reader,
        tokens_url=layout.tokens_url(reader.name),
        folder=str(layout.harness_path(model.id)),
        tasks=tuple(section.tasks),
        task_folder=None if section.folder is None else str(section.folder),
        limit=section.limit,
        seed=seed,
        unsafe_code=section.unsafe_code,
        capture=settings.extraction.capture,
        is_wide_on_cpus=settings.held_out.dtype == "auto",
    )
    made_by = recipe(section, reader, settings, seed=seed)
    claim = artifact.claim(
        inputs.folder, "harness", settings={**made_by.settings, "model": model.fingerprint},
        parents={role: artifact.load(*layout.place(key)) for role, key in made_by.parents.items()},
        if_changed=layout.if_changed,
    )  # fmt: skip
    units = range(len(inputs.tasks))
    missing = [unit for unit in units if claim.artifact is None and read_json(inputs.path(unit)) is None]
    return [
        Work(
            name=f"{model.label} lm-eval",
            missing=missing,
            num_units=len(units),
            total=len(units),
            done=len(units) - len(missing),
            measure="units",
            make_worker=partial(HarnessWorker, inputs),
            finish=lambda: [claim.artifact or _finish(inputs, claim)],
            needs=Needs(engine_ranks=reader.engine.tensor_parallel_size),
            unit_name=lambda unit: f"task {inputs.tasks[unit]}",
        )
    ]


def recipe(section: LmEvalSection, reader: ModelSection, settings: MeasuringSettings, *, seed: int) -> Recipe:
    """What decides the figures beside the model: tasks' prompts change between versions, their examples are drawn by the seed."""
    made_by = {
        **settings.recipe(reader),
        "tasks": section.tasks,
        "limit": section.limit,
        "task_files": tasks.tasks_digest(section.folder),
        "version": tasks.version() if section.tasks else None,
        "draws": tasks.DRAWS,
        "seed": seed,
    }
    return Recipe(made_by, {"tokens": f"tokens/{reader.name}"})


def _finish(inputs: HarnessInputs, claim: Claim) -> Artifact:
    figures: dict[str, Any] = {}
    for unit in range(len(inputs.tasks)):
        figures |= read_json(inputs.path(unit)) or {}
    write_json(f"{inputs.folder}/{FIGURES_FILE}", figures)
    return claim.finish({"figures": len(figures), "version": tasks.version()})
