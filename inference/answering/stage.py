"""The door of answering: questions and a measured model in, an answers artifact per set out.

`prepare` gives the work that is left of one model: chunks of questions of all its sets, answered by one engine.
`cluster.answering` does the works of all models side by side.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fusechat.config import ModelSection
from fusechat.config.evaluation import EvaluationSection
from fusechat.config.layout import RunLayout
from fusechat.config.recipe import Recipe
from fusechat.models.measured_models import MeasuredModel, opened_section
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact, Claim
from fusechat.storage.files import read_json
from fusechat.storage.work import DoneLog, Needs, Work
from fusechat.text.questions import CHUNK_QUESTIONS, answers_file, read_questions, write_answers

from ..measuring import MeasuringSettings
from .answer_worker import AnsweringInputs, AnswerWorker, Chunk
from .asked import AskedSet, asked_sets


def check(section: EvaluationSection) -> None:
    """Raises DialogueError for a file of `evaluation.questions.sets` that cannot be read, or holds what is no question."""
    for one in section.questions.sets:
        read_questions(one.file, one.form)


def prepare(
    layout: RunLayout,
    model: MeasuredModel,
    reader: ModelSection,
    section: EvaluationSection,
    settings: MeasuringSettings,
    *,
    seed: int,
) -> list[Work]:
    """Claim the folders of a model's answers; give what is left of them.

    Args:
        reader: the model of the run whose tokenizer, template and engine it is read with.
        seed: of the sampling.
    Raises:
        ArtifactError: another recipe's answers stand in a folder, or the model's tokens are not finished.
        DialogueError: a questions file that cannot be read.
    """
    sets = asked_sets(section, str(layout.dialogues_path / "held_out.jsonl"), model.role)
    if not sets:
        return []
    inputs = AnsweringInputs(
        model=opened_section(model, settings.engine_of(reader)),
        reader=reader,
        tokens_url=layout.tokens_url(reader.name),
        sets={one.name: one for one in sets},
        folders={one.name: str(layout.answers_path(one.name, model.id)) for one in sets},
        chunks=tuple(chunk for one in sets for chunk in _chunks(one)),
        seed=seed,
        is_wide_on_cpus=settings.held_out.dtype == "auto",
    )
    claims = {
        one.name: _claim(layout, model, one, recipe(one, reader, settings, seed=seed)) for one in sets
    }  # fmt: skip
    missing = [
        number
        for number, chunk in enumerate(inputs.chunks)
        if claims[chunk.answer_set].artifact is None
        and not Path(chunk.path(inputs.folders[chunk.answer_set])).is_file()
    ]
    return [
        Work(
            name=f"{model.label} answers",
            missing=missing,
            num_units=len(inputs.chunks),
            total=len(inputs.chunks),
            done=len(inputs.chunks) - len(missing),
            measure="units",
            make_worker=partial(AnswerWorker, inputs),
            finish=lambda: [claim.artifact or _finish(inputs, name, model.id, claim) for name, claim in claims.items()],
            needs=Needs(engine_ranks=reader.engine.tensor_parallel_size),
            listener=DoneLog(layout.log_path(f"answer.{model.id}"), model.id),
            unit_name=lambda number: str(inputs.chunks[number]),
        )
    ]


def _chunks(asked_set: AskedSet) -> list[Chunk]:
    count = len(asked_set.read())
    starts = range(0, count, CHUNK_QUESTIONS)
    return [Chunk(asked_set.name, start, min(start + CHUNK_QUESTIONS, count)) for start in starts]


def _claim(layout: RunLayout, model: MeasuredModel, asked_set: AskedSet, made_by: Recipe) -> Claim:
    return artifact.claim(
        layout.answers_path(asked_set.name, model.id), "answers",
        settings={**made_by.settings, **asked_set.digests(), "model": model.fingerprint},
        # The template of the tokens is what the model reads under.
        parents={role: artifact.load(*layout.place(key)) for role, key in made_by.parents.items()},
        if_changed=layout.if_changed,
    )  # fmt: skip


def recipe(asked_set: AskedSet, reader: ModelSection, settings: MeasuringSettings, *, seed: int) -> Recipe:
    """What decides answers beside the model that gives them and what the set's file holds.

    Args:
        reader: the model whose tokenizer, template and engine it is read with.
        seed: of the sampling.
    """
    return Recipe(
        {**asked_set.settings(), **settings.recipe(reader), "seed": seed}, {"tokens": f"tokens/{reader.name}"}
    )


def _finish(inputs: AnsweringInputs, name: str, model_id: str, claim: Claim) -> Artifact:
    """Join the chunks' answers into the set's form."""
    asked_set, folder = inputs.sets[name], inputs.folders[name]
    questions = [asked.question for asked in asked_set.read()]
    parts = _read_parts([chunk.path(folder) for chunk in inputs.chunks if chunk.answer_set == name])
    answers = [turns for part in parts for turns in part["answers"]]
    sampling = {
        "max_new_tokens": asked_set.max_new_tokens,
        "temperatures": sorted({asked_set.temperature_of(question) for question in questions}),
        "seed": inputs.seed,
    }
    texts = [["" if text is None else text for text in turns] for turns in answers]
    path = answers_file(Path(folder), model_id, asked_set.form)
    write_answers(path, model_id, asked_set.form, questions, texts, sampling)
    no_room = [question.id for question, turns in zip(questions, answers, strict=True) if None in turns]
    return claim.finish(
        {
            "questions": len(questions),
            "answers": sum(text is not None for turns in answers for text in turns),
            "tokens": sum(part["tokens"] for part in parts),
            "no_room": no_room,
            "sampling": sampling,
        }
    )


def _read_parts(paths: Sequence[str]) -> list[dict[str, Any]]:
    return [dict(read_json(path) or {}) for path in paths]  # each chunk has its file
