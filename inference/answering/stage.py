"""The door of answering: sets of questions and models in, an answers artifact per set and model out.

`prepare` gives a work per model: chunks of questions of all sets, answered by one engine. `cluster.answering` does the works
of all models side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fusechat.config import ModelSection, RunConfig
from fusechat.config.evaluation import AnswerSetSection
from fusechat.config.recipe import Recipe
from fusechat.progress import append_json_line
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact, Claim
from fusechat.storage.work import Listener, Needs, Work
from fusechat.text.questions import (
    CHUNK_QUESTIONS,
    answers_file,
    questions_digest,
    read_questions,
    temperature_of,
    write_answers,
)

from ..engine.engine_worker import engine_settings
from .answer_worker import AnsweringInputs, AnswerWorker, Chunk


@dataclass(frozen=True)
class AnsweringModel:
    """A model that answers."""

    id: str
    label: str
    """What people read."""
    folder: str
    fingerprint: str
    """Of its artifact, or of its files."""
    reader: str
    """The model of the run whose tokenizer, template and engine it is read with."""


class AnswerLog(Listener):
    """Writes a line for each chunk that a model answered."""

    def __init__(self, path: Path, model_id: str) -> None:
        self._path, self._model_id = path, model_id

    def on_done(self, result: dict[str, Any]) -> None:
        append_json_line(self._path, {"model": self._model_id, **result})


def prepare(config: RunConfig, models: Sequence[AnsweringModel]) -> list[Work]:
    """Claim the folders of all answers; give what is left of them, a work per model.

    Raises:
        ArtifactError: another recipe's answers stand in a folder, or a model's tokens are not finished.
        DialogueError: a questions file that cannot be read.
    """
    chunks = tuple(chunk for section in config.evaluation.questions.sets for chunk in _chunks(section))
    return [_work(config, model, chunks) for model in models]


def _chunks(section: AnswerSetSection) -> list[Chunk]:
    count = len(read_questions(section.file, section.form))
    starts = range(0, count, CHUNK_QUESTIONS)
    return [Chunk(section.name, start, min(start + CHUNK_QUESTIONS, count)) for start in starts]


def _work(config: RunConfig, model: AnsweringModel, chunks: tuple[Chunk, ...]) -> Work:
    reader = config.model_named(model.reader)
    inputs = AnsweringInputs(
        model_folder=model.folder,
        reader=reader,
        tokens_url=config.tokens_url(model.reader),
        sets={section.name: section for section in config.evaluation.questions.sets},
        folders={section.name: str(config.answers_path(section.name, model.id)) for section in config.evaluation.questions.sets},
        chunks=chunks,
        seed=config.run.seed,
    )  # fmt: skip
    claims = {name: _claim(config, inputs, section, model) for name, section in inputs.sets.items()}
    missing = [
        number
        for number, chunk in enumerate(chunks)
        if claims[chunk.answer_set].artifact is None
        and not Path(chunk.path(inputs.folders[chunk.answer_set])).is_file()
    ]
    return Work(
        name=model.label,
        missing=missing,
        num_units=len(chunks),
        total=sum(chunk.stop - chunk.start for chunk in chunks),
        done=sum(chunk.stop - chunk.start for number, chunk in enumerate(chunks) if number not in missing),
        measure="questions",
        make_worker=partial(AnswerWorker, inputs),
        finish=lambda: [claim.artifact or _finish(inputs, name, model.id, claim) for name, claim in claims.items()],
        needs=Needs(engine_ranks=reader.engine.tensor_parallel_size),
        listener=AnswerLog(config.log_path(f"answer.{model.id}"), model.id),
        unit_name=lambda number: str(chunks[number]),
    )


def _claim(config: RunConfig, inputs: AnsweringInputs, section: AnswerSetSection, model: AnsweringModel) -> Claim:
    tokens = artifact.load(inputs.tokens_url, "tokens")  # its template is what the model reads under
    settings = {
        **recipe(section, inputs.reader, inputs.seed).settings,
        "questions": questions_digest(read_questions(section.file, section.form)),
        "model": model.fingerprint,
    }
    folder = inputs.folders[section.name]
    return artifact.claim(
        folder, "answers", settings=settings, parents={"tokens": tokens}, if_changed=config.run.if_changed
    )


def recipe(section: AnswerSetSection, reader: ModelSection, seed: int) -> Recipe:
    """What decides answers beside the model that gives them and what the set's file holds.

    Args:
        reader: the model whose tokenizer, template and engine it is read with.
        seed: of sampling.
    """
    settings = {
        **section.model_dump(mode="json", exclude={"file"}), "seed": seed, **engine_settings(reader.engine),
    }  # fmt: skip
    return Recipe(settings, {"tokens": f"tokens/{reader.name}"})


def _finish(inputs: AnsweringInputs, name: str, model_id: str, claim: Claim) -> Artifact:
    """Join the chunks' answers into the set's form."""
    section, folder = inputs.sets[name], inputs.folders[name]
    questions = read_questions(section.file, section.form)
    parts = [artifact.read_json(chunk.path(folder)) for chunk in inputs.chunks if chunk.answer_set == name]
    answers = [turns for part in parts for turns in part["answers"]]  # type: ignore[index]  # each chunk has its file
    sampling = {
        "max_new_tokens": section.max_new_tokens,
        "temperatures": sorted({temperature_of(q, section.form, section.temperature) for q in questions}),
        "seed": inputs.seed,
    }
    texts = [["" if text is None else text for text in turns] for turns in answers]
    path = answers_file(Path(folder), model_id, section.form)
    write_answers(path, model_id, section.form, questions, texts, sampling)
    no_room = [question.id for question, turns in zip(questions, answers, strict=True) if None in turns]
    return claim.finish(
        {
            "questions": len(questions),
            "answers": sum(text is not None for turns in answers for text in turns),
            "tokens": sum(part["tokens"] for part in parts),  # type: ignore[index]  # as above
            "no_room": no_room,
            "sampling": sampling,
        }
    )
