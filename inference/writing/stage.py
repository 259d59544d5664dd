"""The door of writing: prompts and models in; all answers of each model, and the dialogues that a rule keeps of them, out.

`prepare` gives a work per writer: chunks of prompts, each answered by one engine. `cluster.writing` does the works of all writers
side by side and then lets `selection.keep` decide.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fusechat.config import ClusterSection, ModelSection
from fusechat.config.layout import RunLayout
from fusechat.config.recipe import Recipe
from fusechat.config.writing import WritingSection
from fusechat.models.resolved_model import ResolvedModel
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact, Claim
from fusechat.storage.files import read_json
from fusechat.storage.work import DoneLog, Needs, Work, done_before
from fusechat.storage.write_errors import storage_errors
from fusechat.text.prompt_stage import PROMPTS_FILE
from fusechat.text.rendered import ChatTemplate

from ..engine.engine_settings import engine_settings
from .answers import Answer
from .writer_worker import WriterInputs, WriterWorker

ANSWERS_FILE = "answers.jsonl"
"""In a writer's folder: a line per prompt, the list of its answers."""


@dataclass(frozen=True)
class Writer:
    """A model that writes, and the template that it is asked under."""

    model: ResolvedModel
    template: ChatTemplate


def prepare(
    layout: RunLayout, writers: Sequence[Writer], section: WritingSection, cluster: ClusterSection, *, seed: int
) -> list[Work]:
    """Claim the folders of all answers; give what is left of them, a work per writer.

    Args:
        seed: of the sampling.
    Raises:
        ArtifactError: the prompts are not finished, or another recipe's answers stand in a folder.
    """
    prompts = artifact.load(layout.prompts_path, "prompts")
    return [_work(layout, writer, section, cluster, prompts, seed) for writer in writers]


def _work(
    layout: RunLayout, writer: Writer, section: WritingSection, cluster: ClusterSection, prompts: Artifact, seed: int
) -> Work:
    name, model = writer.model.name, writer.model.section
    inputs = WriterInputs(
        model=model, template=writer.template.to_attributes(), prompts_file=f"{layout.prompts_path}/{PROMPTS_FILE}",
        folder=str(layout.written_answers_path(name)), chunk_prompts=section.chunk_prompts, samples=section.samples,
        temperature=section.temperature, max_new_tokens=section.max_new_tokens, seed=seed,
    )  # fmt: skip
    settings = recipe(model, section, seed).with_files(digests=writer.model.digests, template=inputs.template)
    parents = {"prompts": prompts}
    claim = artifact.claim(inputs.folder, "answers", settings=settings, parents=parents, if_changed=layout.if_changed)
    if claim.artifact is not None:
        return done_before(name, claim.artifact)
    num_prompts = int(prompts.counts["prompts"])
    units = range(-(-num_prompts // section.chunk_prompts))
    missing = [unit for unit in units if not Path(inputs.chunk_file(unit)).is_file()]
    left = sum(len(range(num_prompts)[inputs.chunk(unit)]) for unit in missing)
    return Work(
        name=name,
        missing=missing,
        num_units=len(units),
        total=num_prompts * section.samples,
        done=(num_prompts - left) * section.samples,
        measure="answers",
        make_worker=partial(WriterWorker, inputs),
        finish=lambda: [_finish(inputs, len(units), claim)],
        needs=Needs(engine_ranks=model.engine.tensor_parallel_size, units_in_flight=cluster.units_in_flight),
        listener=DoneLog(layout.log_path(f"write.{name}"), name),
        unit_name="chunk {}".format,
    )


def recipe(model: ModelSection, section: WritingSection, seed: int) -> Recipe:
    """All that decides a writer's answers beside its files and what the prompts hold.

    Args:
        seed: of the sampling.
    """
    settings = {
        "model": model.model,
        "revision": model.revision,
        "template": model.template,
        "template_arguments": model.template_arguments,
        **engine_settings(model.engine),
        **section.model_dump(mode="json", include={"samples", "temperature", "max_new_tokens", "chunk_prompts"}),
        "seed": seed,
    }
    return Recipe(settings, {"prompts": "writing/prompts"})


def _finish(inputs: WriterInputs, num_units: int, claim: Claim) -> Artifact:
    """Join the chunks' answers into one file and count them."""
    path = Path(inputs.folder) / ANSWERS_FILE
    answers = whole = tokens = 0
    with storage_errors(path), path.open("w", encoding="utf-8") as file:
        for unit in range(num_units):
            part: Any = read_json(inputs.chunk_file(unit))
            tokens += part["tokens"]
            for rows in part["answers"]:
                answers += len(rows)
                whole += sum("fault" not in row for row in rows)
                file.write(json.dumps(rows, ensure_ascii=False) + "\n")
    return claim.finish({"answers": answers, "whole": whole, "tokens": tokens})


def saved_answers(folder: Path) -> Iterator[list[Answer]]:
    """The answers of a writer to one prompt after the other, in the order of the prompts."""
    with (folder / ANSWERS_FILE).open(encoding="utf-8") as file:
        for line in file:
            yield [Answer.from_row(row) for row in json.loads(line)]
