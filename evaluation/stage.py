"""The door of evaluation: the models of a run in, report.json and index.html out."""

from typing import Any

from fusechat.config import RunConfig
from fusechat.config.evaluation import EVALUATION_MEANS
from fusechat.errors import ArtifactError, ConfigError
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact
from fusechat.storage.tokens import Tokens
from fusechat.text.dialogues import Dialogue, read_dialogues

from . import ahead, harness, provenance
from .answer_sets import finished_answers, read_answer_sets
from .figures import HeldOut
from .judge.judge import AnswerSet, judge_answers, num_verdicts
from .measurement import Questions, measure, work
from .models import MeasuredModel, measured_models
from .report import cards, page, report
from .row_sample import RowSample, row_sample


def run(config: RunConfig, *, progress: Progress | None = None) -> Artifact:
    """Measure every model of the run on the held-out dialogues and write the report.

    Raises:
        ConfigError: `evaluation` names a kind of dialogue that the run does not have, or as `ahead.check`.
        ArtifactError: a model is not finished, or the folder holds another recipe's report.
        ModelError: a model cannot be loaded, or its loss is not a number.
        JudgeError: the judge's endpoint does not answer; the verdicts that came are kept.
    """
    progress = progress or Progress(quiet=True)
    models = measured_models(config)
    readers = dict.fromkeys(model.reader for model in models)
    tokens = {name: artifact.load(config.tokens_url(name, "held_out"), "tokens") for name in readers}
    parents = {f"tokens {name}": found for name, found in tokens.items()}
    parents |= {model.id: model.artifact for model in models if model.artifact is not None}
    sample = row_sample(config)
    parents |= sample.artifacts if sample else {}
    parents |= finished_answers(config)
    dialogues = _held_out_dialogues(config, tokens)
    _check_kinds(config, dialogues)
    section, sets = config.evaluation, read_answer_sets(config)
    # What is finished asks for no key and no harness.
    to_do = (
        artifact.read_json(f"{config.report_path}/{artifact.RECORD_FILE}") is None or config.run.if_changed == "restart"
    )
    if to_do:
        ahead.check(config)
    harness_version = harness.version() if section.lm_eval.tasks and to_do else None
    claim = artifact.claim(
        config.report_path,
        "report",
        settings=_settings(config, models),
        parents=parents,
        if_changed=config.run.if_changed,
    )
    if claim.artifact is not None:
        _restore_cards(config, models)
        return claim.artifact
    measured = _measure_all(config, models, tokens, dialogues, sample, progress)
    judged = _judge(config, sets, progress)
    document = report.build(config, models, HeldOut.of(dialogues), dialogues, measured, sample, sets, judged)
    document["harness"] = _harness_record(harness_version, measured)
    artifact.write_json(str(config.report_path / "report.json"), document)
    page.write(document, config.report_path / "index.html")
    if not config.places:  # a shared model has several reports, and its card would show the last one's
        cards.write_cards(document)
    return claim.finish(
        {
            "models": len(models),
            "dialogues": len(dialogues),
            "questions": len(document["answers"]),
            "bits_per_byte": {model["id"]: model["loss"]["all"]["bits_per_byte"] for model in document["models"]},
        }
    )


def _restore_cards(config: RunConfig, models: list[MeasuredModel]) -> None:
    """Give a model that was made anew since, because it was damaged, the figures that its card had."""
    document = artifact.read_json(f"{config.report_path}/report.json")
    if document is None or config.places:
        return
    folders = {
        model.id: str(model.folder) for model in models
    }  # where they are now: the report may say where they were
    of_models = [{**model, "folder": folders.get(model["id"], model["folder"])} for model in document["models"]]
    cards.write_cards({**document, "models": of_models})


def _settings(config: RunConfig, models: list[MeasuredModel]) -> dict[str, Any]:
    # What changes how figures are reached, and not the figures.
    excluded: Any = {**EVALUATION_MEANS, "models": True, "sources": True}
    return {
        **config.evaluation.model_dump(mode="json", exclude=excluded),
        "models": {model.id: model.fingerprint for model in models},
        "seed": config.run.seed,
        "report_format": provenance.FORMAT,
    }


def _harness_record(version: str | None, measured: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    if version is None:
        return None
    models = {model_id: found["harness"] for model_id, found in measured.items()}
    figures = list(dict.fromkeys(figure for found in models.values() for figure in found))
    return {"version": version, "figures": figures, "models": models}


def _judge(config: RunConfig, sets: list[AnswerSet], progress: Progress) -> dict[str, Any] | None:
    section = config.evaluation.judge
    if section is None:
        return None
    with progress.task("judge", num_verdicts(section, sets), "verdicts") as task:
        return judge_answers(section, sets, config.verdicts_path, seed=config.run.seed, on_reply=task.advance)


def _held_out_dialogues(config: RunConfig, tokens: dict[str, Artifact]) -> list[Dialogue]:
    """The held-out dialogues, in the order of the tokens artifacts; none where nothing was held out."""
    path = config.dialogues_path / "held_out.jsonl"
    found = list(read_dialogues(path)) if path.is_file() and path.stat().st_size else []
    for name, tokenized in tokens.items():
        if tokenized.counts["dialogues"] != len(found):
            raise ArtifactError(
                f"{path}: holds {len(found)} dialogues, {tokenized.url} was made from {tokenized.counts['dialogues']}; "
                f"tokenize the dialogues of {name} again"
            )
    return found


def _check_kinds(config: RunConfig, dialogues: list[Dialogue]) -> None:
    kinds = sorted({dialogue.kind for dialogue in dialogues})
    for kind in config.evaluation.exact.kinds:
        if dialogues and kind not in kinds:
            raise ConfigError(
                f"evaluation.exact.kinds: found {kind!r}, the held-out dialogues are of the kinds {kinds}; "
                "name one of these"
            )


def _measure_all(
    config: RunConfig,
    models: list[MeasuredModel],
    tokens: dict[str, Artifact],
    dialogues: list[Dialogue],
    sample: RowSample | None,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """Model id -> what was measured, one model in memory at a time."""
    questions = Questions.of(config.evaluation, dialogues)
    read = {name: Tokens.read(found.url) for name, found in tokens.items()}
    total = sum(work(read[model.reader], questions, model.role, config.evaluation, sample) for model in models)
    measured = {}
    with progress.task("evaluate", total, "tokens") as task:
        for model in models:

            def on_tokens(num_tokens: int, label: str = model.label) -> None:
                task.advance(num_tokens, note=label)

            measured[model.id] = measure(
                config, model, tokens[model.reader], dialogue_ids=[dialogue.id for dialogue in dialogues],
                questions=questions, sample=sample, on_tokens=on_tokens,
            )  # fmt: skip
    return measured
