"""The door of evaluation: what the measured models left in, report.json and index.html out. Loads no network."""

from collections.abc import Sequence
from typing import Any

from fusechat.config.evaluation import EVALUATION_MEANS, EXACT, SAMPLES
from fusechat.errors import ArtifactError, ConfigError
from fusechat.models.measured_models import MeasuredModel, measured_models
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact
from fusechat.storage.chosen_rows import ChosenRows
from fusechat.storage.files import read_json, write_json
from fusechat.text.dialogues import Dialogue
from fusechat.text.held_out import is_asked, read_held_out
from fusechat.text.questions import Question

from . import harness_figures, provenance
from .answer_sets import read_answer_sets
from .compared_rows import ComparedRows, compared_rows
from .figures import HeldOut
from .inputs import ReportInputs
from .judge.judge import AnswerSet, judge_answers, num_verdicts
from .judge.judge_connection import judge_key
from .measured import Measured, MeasuredArtifacts, load_artifacts, read_measured
from .report import cards, page, report


def run(inputs: ReportInputs, *, progress: Progress | None = None) -> Artifact:
    """Read what every measured model of the run left, and write the report.

    Raises:
        ConfigError: `evaluation` names a kind of dialogue that the run does not have, or the judge's key is not there.
        ArtifactError: a model is not finished or did not do what is asked, or the folder holds another recipe's report.
        ModelError: a model's loss is not a number.
        JudgeError: the judge's endpoint does not answer; the verdicts that came are kept.
    """
    progress = progress or Progress(quiet=True)
    models, compared = (
        measured_models(inputs.layout, inputs.pivot, inputs.sources, inputs.measured_ids),
        compared_rows(inputs),
    )
    readers = dict.fromkeys(model.reader for model in models)
    tokens = {name: artifact.load(inputs.layout.tokens_url(name, "held_out"), "tokens") for name in readers}
    dialogues = _held_out_dialogues(inputs, tokens)
    _check_kinds(inputs, dialogues)
    made = {model.id: load_artifacts(inputs.layout, model, inputs.section, compared) for model in models}
    claim = artifact.claim(
        inputs.layout.report_path, "report", settings=_settings(inputs, models), parents=_parents(models, tokens, made),
        if_changed=inputs.layout.if_changed,
    )  # fmt: skip
    if claim.artifact is not None:
        _restore_cards(inputs, models)
        return claim.artifact
    if inputs.section.judge is not None:
        judge_key(inputs.section.judge)
    sets = read_answer_sets(inputs)
    questions = _questions(inputs, dialogues)
    measured = {
        model.id: read_measured(
            made[model.id], model, tokens[model.reader], dialogue_ids=[dialogue.id for dialogue in dialogues],
            questions=questions, compared=compared,
        )
        for model in models
    }  # fmt: skip
    judged = _judge(inputs, sets, progress)
    sample = report.sample_record(inputs, compared, *_drawn(inputs, compared, made))
    document = report.build(inputs, models, HeldOut.of(dialogues), dialogues, measured, sample, sets, judged)
    document["harness"] = _harness_record(made, measured)
    write_json(str(inputs.layout.report_path / "report.json"), document)
    page.write(document, inputs.layout.report_path / "index.html")
    if not inputs.layout.places:  # a shared model has several reports, and its card would show the last one's
        cards.write_cards(document)
    return claim.finish(
        {
            "models": len(models),
            "dialogues": len(dialogues),
            "questions": len(document["answers"]),
            "bits_per_byte": {model["id"]: model["loss"]["all"]["bits_per_byte"] for model in document["models"]},
        }
    )


def _restore_cards(inputs: ReportInputs, models: list[MeasuredModel]) -> None:
    """Give a model that was made anew since, because it was damaged, the figures that its card had."""
    document = read_json(f"{inputs.layout.report_path}/report.json")
    if document is None or inputs.layout.places:
        return
    folders = {
        model.id: str(model.folder) for model in models
    }  # where they are now: the report may say where they were
    of_models = [{**model, "folder": folders.get(model["id"], model["folder"])} for model in document["models"]]
    cards.write_cards({**document, "models": of_models})


def _settings(inputs: ReportInputs, models: list[MeasuredModel]) -> dict[str, Any]:
    # What changes how figures are reached, and not the figures; and where files lie that the answers know by what they hold.
    places = {"questions": {"sets": {"__all__": {"file"}}}, "lm_eval": EVALUATION_MEANS["lm_eval"] | {"folder"}}
    excluded: Any = {**EVALUATION_MEANS, **places, "models": True, "sources": True}
    return {
        **inputs.section.model_dump(mode="json", exclude=excluded),
        "models": {model.id: model.fingerprint for model in models},
        "seed": inputs.seed,
        "report_format": provenance.FORMAT,
    }


def _parents(
    models: Sequence[MeasuredModel],
    tokens: dict[str, Artifact],
    made: dict[str, MeasuredArtifacts],
) -> dict[str, Artifact]:
    """All that the figures are from."""
    parents = {f"tokens {name}": one for name, one in tokens.items()}
    parents |= {model.id: model.artifact for model in models if model.artifact is not None}
    for model_id, artifacts in made.items():
        parents |= artifacts.parents(model_id)
    return parents


def _questions(inputs: ReportInputs, dialogues: Sequence[Dialogue]) -> dict[str, list[Question]]:
    """What was asked beside the sets of questions, by set."""
    section = inputs.section
    exact = [
        Question(dialogue.id, (dialogue.messages[-2].content,))
        for dialogue in dialogues
        if is_asked(dialogue, section.exact.kinds)
    ]
    samples = [Question(str(number), (text,)) for number, text in enumerate(section.questions.samples, 1)]
    return {EXACT: exact, SAMPLES: samples}


def _drawn(
    inputs: ReportInputs, compared: Sequence[ComparedRows], made: dict[str, MeasuredArtifacts]
) -> tuple[dict[str, list[int]], int]:
    """Split -> numbers of the dialogues that were compared; and how many training dialogues there are."""
    drawn: dict[str, list[int]] = {"train": [], "held_out": []}
    for one in compared:
        for artifacts in made.values():
            if (scored := artifacts.chosen.get((one.split, one.teacher))) is not None:
                drawn[one.split] = ChosenRows.read(scored.url).dialogues.tolist()
                break
    return drawn, int(artifact.load(inputs.layout.tokens_url(inputs.pivot.name), "tokens").counts["dialogues"])


def _harness_record(made: dict[str, MeasuredArtifacts], measured: dict[str, Measured]) -> dict[str, Any] | None:
    versions = [one.harness.counts["version"] for one in made.values() if one.harness is not None]
    figures = {model_id: one.harness for model_id, one in measured.items()}
    return harness_figures.record(versions[0] if versions else None, figures)


def _judge(inputs: ReportInputs, sets: list[AnswerSet], progress: Progress) -> dict[str, Any] | None:
    section = inputs.section.judge
    if section is None:
        return None
    with progress.task("judge", num_verdicts(section, sets), "verdicts") as task:
        return judge_answers(section, sets, inputs.layout.verdicts_path, seed=inputs.seed, on_reply=task.advance)


def _held_out_dialogues(inputs: ReportInputs, tokens: dict[str, Artifact]) -> list[Dialogue]:
    """The held-out dialogues, in the order of the tokens artifacts; none where nothing was held out."""
    path = inputs.layout.dialogues_path / "held_out.jsonl"
    dialogues = read_held_out(path)
    for name, tokenized in tokens.items():
        if tokenized.counts["dialogues"] != len(dialogues):
            raise ArtifactError(
                f"{path}: holds {len(dialogues)} dialogues, {tokenized.url} was made from {tokenized.counts['dialogues']}; "
                f"tokenize the dialogues of {name} again"
            )
    return dialogues


def _check_kinds(inputs: ReportInputs, dialogues: list[Dialogue]) -> None:
    kinds = sorted({dialogue.kind for dialogue in dialogues})
    for kind in inputs.section.exact.kinds:
        if dialogues and kind not in kinds:
            raise ConfigError(
                f"evaluation.exact.kinds: found {kind!r}, the held-out dialogues are of the kinds {kinds}; "
                "name one of these"
            )
