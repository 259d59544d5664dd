"""Answering on Ray: a pool of engines answers the questions of `evaluation.answers`, every measured model for itself."""

from typing import Any

from evaluation.models import MeasuredModel, measured_models
from fusechat.config import RunConfig
from fusechat.config.evaluation import AnswerSetSection
from fusechat.progress import Progress, Task, append_json_line
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact, Claim
from fusechat.text.questions import (
    CHUNK_QUESTIONS,
    answers_file,
    questions_digest,
    read_questions,
    temperature_of,
    write_answers,
)
from inference.answer_actor import AnswerActor, AnsweringModel, Chunk
from inference.engine.engine_actor import engine_settings

from .pool.placement import num_replicas, plan_placement, start_engine
from .pool.preflight import check_cluster
from .pool.session import ray_session
from .pool.shard_pool import Job, ShardPool, raise_failures


def run(config: RunConfig, *, progress: Progress) -> list[Artifact]:
    """Answer what is missing, and write each model's answers in the form of their set.

    Returns:
        one artifact per set and model.
    Raises:
        DialogueError: a questions file that cannot be read.
        StorageError: the answers cannot be written.
        ClusterError: an engine could not start, or chunks were set aside. In all cases what was answered is kept.
    """
    models = measured_models(config)
    chunks = [chunk for section in config.evaluation.answers for chunk in _chunks(section)]
    claims = {(section.name, model.id): _claim(config, section, model)
              for section in config.evaluation.answers for model in models}  # fmt: skip
    missing = {
        model.id: [
            number
            for number, chunk in enumerate(chunks)
            if claims[chunk.answer_set, model.id].artifact is None and not chunk.path(config, model.id).is_file()
        ]
        for model in models
    }
    if any(missing.values()):
        _answer(config, [model for model in models if missing[model.id]], chunks, missing, progress)
    sections = {section.name: section for section in config.evaluation.answers}
    return [
        claim.artifact or _finish(config, sections[name], model_id, chunks, claim)
        for (name, model_id), claim in claims.items()
    ]


def _chunks(section: AnswerSetSection) -> list[Chunk]:
    count = len(read_questions(section.file, section.form))
    starts = range(0, count, CHUNK_QUESTIONS)
    return [Chunk(section.name, start, min(start + CHUNK_QUESTIONS, count)) for start in starts]


def _claim(config: RunConfig, section: AnswerSetSection, model: MeasuredModel) -> Claim:
    tokens = artifact.load(config.tokens_url(model.reader), "tokens")  # its template is what the model reads under
    settings = {
        **section.model_dump(mode="json", exclude={"file"}),
        "questions": questions_digest(read_questions(section.file, section.form)),
        "seed": config.run.seed,
        "model": model.fingerprint,
        **engine_settings(config.model_named(model.reader).engine),
    }
    folder = config.answers_path(section.name, model.id)
    return artifact.claim(
        folder, "answers", settings=settings, parents={"tokens": tokens}, if_changed=config.run.if_changed
    )


def _answer(
    config: RunConfig,
    models: list[MeasuredModel],
    chunks: list[Chunk],
    missing: dict[str, list[int]],
    progress: Progress,
) -> None:
    total = sum(chunks[number].stop - chunks[number].start for model in models for number in missing[model.id])
    with ray_session(config.cluster), progress.task("answer", total, "answers") as task:
        readers = list(dict.fromkeys(model.reader for model in models))
        check_cluster(
            config, readers, {"run.store": config.store_url, "run.output": str(config.run.output / "answers")}
        )
        progress.say(f"answer: starting {len(models)} models on Ray: {', '.join(model.label for model in models)}")
        jobs = [_job(config, model, chunks, missing[model.id], task) for model in models]
        ShardPool(shards_in_flight=1, max_attempts=config.extraction.max_attempts, on_event=progress.say).run(jobs)
    raise_failures(jobs)


def _job(config: RunConfig, model: MeasuredModel, chunks: list[Chunk], numbers: list[int], task: Task) -> Job:
    placement = plan_placement(config.model_named(model.reader).engine, config.cluster)
    answering = AnsweringModel(model.id, str(model.folder), model.reader)
    log_path = config.log_path(f"answer.{model.id}")

    def on_done(result: dict[str, Any]) -> None:
        append_json_line(log_path, {"model": model.id, **result})
        chunk = chunks[result["shard"]]
        task.advance(chunk.stop - chunk.start, note=model.label)

    return Job(
        name=model.id,
        shards=numbers,
        make_replica=lambda: start_engine(AnswerActor, placement, config.dump(), answering, chunks),
        num_replicas=lambda left: num_replicas(placement, config.extraction.replicas, left, config.cluster.max_gpus),
        on_done=on_done,
        shard_name=lambda number: str(chunks[number]),
    )


def _finish(config: RunConfig, section: AnswerSetSection, model_id: str, chunks: list[Chunk], claim: Claim) -> Artifact:
    """Join the chunks' answers into the set's form."""
    questions = read_questions(section.file, section.form)
    parts = [
        artifact.read_json(str(chunk.path(config, model_id))) for chunk in chunks if chunk.answer_set == section.name
    ]
    answers = [turns for part in parts for turns in part["answers"]]  # type: ignore[index]
    sampling = {
        "max_new_tokens": section.max_new_tokens,
        "temperatures": sorted({temperature_of(q, section.form, section.temperature) for q in questions}),
        "seed": config.run.seed,
    }
    texts = [["" if text is None else text for text in turns] for turns in answers]
    path = answers_file(config.answers_path(section.name, model_id), model_id, section.form)
    write_answers(path, model_id, section.form, questions, texts, sampling)
    no_room = [question.id for question, turns in zip(questions, answers, strict=True) if None in turns]
    return claim.finish(
        {
            "questions": len(questions),
            "answers": sum(text is not None for turns in answers for text in turns),
            "tokens": sum(part["tokens"] for part in parts),  # type: ignore[index]
            "no_room": no_room,
            "sampling": sampling,
        }
    )
