"""What one measured model left, read for the figures: its artifacts in; losses, answers and divergences out.

Every artifact is checked to be of this model: what another one left is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusechat.config.evaluation import EXACT, SAMPLES, EvaluationSection
from fusechat.config.layout import RunLayout
from fusechat.errors import ArtifactError
from fusechat.models.measured_models import MeasuredModel
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact
from fusechat.storage.chosen_rows import ChosenRows
from fusechat.storage.files import read_json
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens_reader import TokensReader
from fusechat.text.questions import Question

from .answer_sets import given_answers
from .compared_rows import ComparedRows, Split
from .held_out_loss import dialogue_nats
from .row_divergence import dialogue_divergences

Divergences = dict[str, dict[str, list[Any]]]
"""Teacher -> `nats` (summed over rows) and `rows`, one per dialogue of the sample."""


@dataclass(frozen=True)
class MeasuredArtifacts:
    """All that a model left."""

    held_out: Artifact
    answers: dict[str, Artifact]
    """By set."""
    chosen: dict[tuple[Split, str], Artifact]
    """By split and teacher."""
    harness: Artifact | None

    def parents(self, model_id: str) -> dict[str, Artifact]:
        """Role -> artifact, for the report's record."""
        parents = {f"held_out {model_id}": self.held_out}
        parents |= {f"answers {name} {model_id}": made for name, made in self.answers.items()}
        parents |= {f"chosen {model_id} {split} {teacher}": made for (split, teacher), made in self.chosen.items()}
        return parents | ({} if self.harness is None else {f"harness {model_id}": self.harness})


@dataclass(frozen=True)
class Measured:
    """What the figures take of one model.

    `nats`: float64 [dialogues], NaN where it could not read one; `exact` and `samples`: answers by the number of the question,
    None where there was no room for one.
    """

    nats: np.ndarray
    exact: list[str | None]
    samples: list[str | None]
    divergence: dict[Split, Divergences]
    harness: dict[str, Any]
    about: dict[str, Any]
    """parameters, dtype, device, seconds, tokens, rows."""


def load_artifacts(
    layout: RunLayout, model: MeasuredModel, section: EvaluationSection, compared: Sequence[ComparedRows]
) -> MeasuredArtifacts:
    """The finished artifacts of one model.

    Raises:
        ArtifactError: one is not finished, or another model's.
    """
    rows = _load(layout.held_out_url(model.id), "logprobs", model)
    teachers = compared if model.role != "source" else []
    chosen = {
        (one.split, one.teacher): _load(layout.chosen_url(model.id, one.split, one.teacher), "chosen", model)
        for one in teachers
    }
    for one in teachers:
        made = chosen[one.split, one.teacher]
        if made.record["parents"]["rows"] != one.rows.fingerprint:
            raise ArtifactError(f"{made.url}: is of other rows than {one.rows.url}; run `fusechat answer` again")
    return MeasuredArtifacts(
        held_out=rows,
        answers={
            name: _load(layout.answers_path(name, model.id), "answers", model) for name in section.set_names(model.id)
        },
        chosen=chosen,
        harness=_load(layout.harness_path(model.id), "harness", model) if section.lm_eval.tasks else None,
    )


def _load(url: str | Path, kind: str, model: MeasuredModel) -> Artifact:
    record = read_json(f"{url}/{artifact.RECORD_FILE}")
    if record is None:
        raise ArtifactError(f"{url}: found nothing finished of {model.label}; run `fusechat answer` first")
    made = artifact.load(url, kind)
    if made.record["settings"].get("model") != model.fingerprint:
        raise ArtifactError(
            f"{url}: was made by another model than {model.folder}, which has changed; run `fusechat answer` again"
        )
    return made


def read_measured(
    made: MeasuredArtifacts,
    model: MeasuredModel,
    tokens: Artifact,
    *,
    dialogue_ids: Sequence[str],
    questions: dict[str, list[Question]],
    compared: Sequence[ComparedRows],
) -> Measured:
    """Read what a model left.

    Args:
        tokens: the held-out tokens that it read.
        dialogue_ids: of the held-out dialogues.
        questions: of the sets `exact` and `samples`.
    Raises:
        ModelError: a loss or a divergence that is not a number.
        ArtifactError: damage, or rows of other tokens.
    """
    if made.held_out.record["parents"]["tokens"] != tokens.fingerprint:
        raise ArtifactError(
            f"{made.held_out.url}: was made from other tokens than {tokens.url}; run `fusechat answer` again"
        )
    nats = np.full(len(dialogue_ids), np.nan)
    if made.held_out.counts["rows"]:
        store = RowStore.open(made.held_out.url, "logprobs")
        lengths = TokensReader(tokens.url).lengths
        nats = dialogue_nats(store, lengths, label=model.label, dialogue_ids=dialogue_ids)
    counts, engine = made.held_out.counts, made.held_out.counts["engine"] or {}
    figures = {} if made.harness is None else read_json(f"{made.harness.url}/figures.json")
    return Measured(
        nats=nats,
        exact=_answers(made, model, EXACT, questions),
        samples=_answers(made, model, SAMPLES, questions),
        divergence=_divergences(made, model, compared),
        harness=figures or {},
        about={
            "parameters": counts["parameters"],
            "dtype": engine.get("dtype"),
            "device": engine.get("device"),
            "seconds": counts["engine_seconds"],
            "tokens": tokens.counts["tokens"],
            "rows": counts["rows"],
        },
    )


def _answers(
    made: MeasuredArtifacts, model: MeasuredModel, name: str, questions: dict[str, list[Question]]
) -> list[str | None]:
    if name not in made.answers:
        return []
    given = given_answers(made.answers[name], model.id, "prompts", questions[name])
    return [None if turns is None else turns[0] for turns in given]


def _divergences(
    made: MeasuredArtifacts, model: MeasuredModel, compared: Sequence[ComparedRows]
) -> dict[Split, Divergences]:
    divergences: dict[Split, Divergences] = {"train": {}, "held_out": {}}
    for one in compared:
        scored = made.chosen.get((one.split, one.teacher))
        if scored is not None:
            store = RowStore.open(one.rows.url, one.rows.kind)
            nats, rows = dialogue_divergences(
                ChosenRows.read(scored.url), store, label=model.label, teacher=one.teacher
            )
            divergences[one.split][one.teacher] = {"nats": nats.tolist(), "rows": rows.tolist()}
    return divergences
