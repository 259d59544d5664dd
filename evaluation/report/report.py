"""The report as one document, and as what a terminal shows: what was measured in, report.json's content out.

docs/evaluation.md describes the document. Knows nothing about artifacts or HTML.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from fusechat.config.evaluation import SAMPLED_ROLES
from fusechat.models.measured_models import MeasuredModel
from fusechat.storage import artifact
from fusechat.storage.files import read_json
from fusechat.text.dialogues import Dialogue
from fusechat.text.exact_match import is_exact
from fusechat.text.held_out import is_asked

from .. import provenance
from ..answer_sets import set_records
from ..compared_rows import ComparedRows, missing_teachers
from ..figures import (
    HeldOut,
    accuracy_differences,
    accuracy_figures,
    compared_pairs,
    divergence_differences,
    divergence_figures,
    loss_differences,
    loss_figures,
)
from ..inputs import ReportInputs
from ..intervals import LEVEL, MIN_DIALOGUES
from ..judge.judge import AnswerSet
from ..measured import Measured

MAX_NAMED = 10
"""Dialogues named in one note."""


def build(
    inputs: ReportInputs,
    models: Sequence[MeasuredModel],
    held_out: HeldOut,
    dialogues: Sequence[Dialogue],
    measured: dict[str, Measured],
    sample: dict[str, Any] | None = None,
    sets: Sequence[AnswerSet] = (),
    judged: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole document.

    Args:
        sample: from `sample_record`.
    """
    seed, course = inputs.seed, provenance.course(inputs)
    bad = provenance.bad_metrics(course["training"])
    kinds = [kind for kind in inputs.section.exact.kinds if kind in held_out.kind_names]
    asked = [number for number, dialogue in enumerate(dialogues) if is_asked(dialogue, kinds)]
    exact = {
        model_id: {
            number: is_exact(answer, dialogues[number].messages[-1].content)
            for number, answer in zip(asked, one.exact, strict=True)
            if answer is not None
        }
        for model_id, one in measured.items()
    }
    nats = {model_id: one.nats for model_id, one in measured.items()}
    return {
        **course,
        "state": "finished",
        "now": "",
        "held_out": _held_out_record(held_out),
        "interval": {"level": LEVEL, "min_dialogues": MIN_DIALOGUES},
        "notes": [
            *_notes(held_out, nats),
            *_source_notes(inputs, (sample or {}).get("missing", [])),
            *_judge_notes(judged),
            *bad,
        ],
        "divergence": sample,
        "exact_match_kinds": kinds,
        "models": [
            {
                **_model_record(model, measured[model.id].about),
                "loss": loss_figures(held_out, nats[model.id], seed=seed),
                "accuracy": accuracy_figures(held_out, exact[model.id], kinds) if kinds else {},
                "divergence": divergence_figures(measured[model.id].divergence["train"], seed=seed),
                "held_out_divergence": divergence_figures(measured[model.id].divergence["held_out"], seed=seed),
                "nats": [None if np.isnan(value) else float(value) for value in nats[model.id]],
            }
            for model in models
        ],
        "differences": [
            {
                "model": one,
                "against": other,
                "loss": loss_differences(held_out, nats[one], nats[other], seed=seed),
                "divergence": divergence_differences(
                    measured[one].divergence["train"], measured[other].divergence["train"], seed=seed
                ),
                "held_out_divergence": divergence_differences(
                    measured[one].divergence["held_out"], measured[other].divergence["held_out"], seed=seed
                ),
                "accuracy": accuracy_differences(held_out, exact[one], exact[other], kinds) if kinds else {},
            }
            for one, other in compared_pairs(list(measured))
        ],
        "answers": _answers(dialogues, asked, measured, exact),
        "samples": _samples(inputs.section.questions.samples, models, measured),
        "answer_sets": set_records(inputs, list(sets)),
        "judge": judged,
        "harness": None,
    }


def _held_out_record(held_out: HeldOut) -> dict[str, Any]:
    items = [
        {"id": dialogue_id, "kind": str(kind), "bytes": int(size)}
        for dialogue_id, kind, size in zip(held_out.ids, held_out.kinds, held_out.num_bytes, strict=True)
    ]
    kinds = {
        kind: {
            "dialogues": int((held_out.kinds == kind).sum()),
            "bytes": int(held_out.num_bytes[held_out.kinds == kind].sum()),
        }
        for kind in held_out.kind_names
    }
    return {"dialogues": len(items), "bytes": int(held_out.num_bytes.sum()), "kinds": kinds, "items": items}


def _notes(held_out: HeldOut, nats: dict[str, np.ndarray]) -> list[str]:
    """What a reader must know before believing a figure."""
    notes = []
    if not held_out.ids:
        notes.append("No held-out dialogues: no loss was measured. Name some in dialogues.held_out.")
    few = [kind for kind in held_out.kind_names if (held_out.kinds == kind).sum() < MIN_DIALOGUES]
    if 0 < len(held_out.ids) < MIN_DIALOGUES:
        notes.append(
            f"Fewer than {MIN_DIALOGUES} held-out dialogues: no intervals are given, and nothing is supported."
        )
    elif few:
        notes.append(
            f"Fewer than {MIN_DIALOGUES} held-out dialogues of kind {', '.join(few)}: no intervals are given there."
        )
    for model_id, values in nats.items():
        missing = int(np.isnan(values).sum())
        if missing:
            notes.append(
                f"{model_id}: {missing} held-out dialogues are longer than its positions and were left out for it."
            )
    return notes


def _source_notes(inputs: ReportInputs, missing_rows: list[str]) -> list[str]:
    notes = []
    prepared = read_json(f"{inputs.layout.dialogues_path}/{artifact.RECORD_FILE}") or {"counts": {}}
    if shared := prepared["counts"].get("held_out_in_train"):
        named = ", ".join(shared[:MAX_NAMED]) + (", ..." if len(shared) > MAX_NAMED else "")
        notes.append(
            f"{len(shared)} held-out dialogues are training dialogues too ({named}): the held-out loss of targets and "
            "fused model is lower than it would be on new dialogues."
        )
    if missing_rows:
        notes.append(f"No finished rows of {', '.join(missing_rows)}: no divergence from them was measured.")
    if inputs.section.held_out.divergence_dialogues and not inputs.compares_rows:
        notes.append("No divergence was measured: extraction.capture prompt_logprobs gives no logprobs of chosen ids.")
    return notes


def _judge_notes(judged: dict[str, Any] | None) -> list[str]:
    notes = []
    for name, modes in (judged or {"sets": {}})["sets"].items():
        for mode, models in modes.items():
            nonsense, asked = (sum(entry[key] for entry in models.values()) for key in ("nonsense", "verdicts"))
            if nonsense:
                reasons = sum((Counter(entry["nonsense_reasons"]) for entry in models.values()), Counter[str]())
                why = ", ".join(f"{reason}: {num}" for reason, num in reasons.most_common())
                notes.append(
                    f"{nonsense} of {asked} {mode} verdicts on {name} cannot be read and are not scored ({why})."
                )
            if alone := sum(entry.get("alone", 0) for entry in models.values()):
                notes.append(
                    f"{alone} of {asked} {mode} verdicts on {name} have no readable one in the other order; they are not counted."
                )
    return notes


def sample_record(
    inputs: ReportInputs, compared: Sequence[ComparedRows], dialogues: dict[str, list[int]], num_train: int
) -> dict[str, Any] | None:
    """Which rows the divergences were measured on; None where none was asked for.

    Args:
        dialogues: split -> numbers of the dialogues that were drawn.
        num_train: training dialogues.
    """
    if not inputs.compares_rows:
        return None
    return {
        "teachers": [one.teacher for one in compared if one.split == "train"],
        "training_dialogues": len(dialogues["train"]),
        "of": num_train,
        "numbers": dialogues["train"],
        "held_out_teachers": [one.teacher for one in compared if one.split == "held_out"],
        "held_out_dialogues": len(dialogues["held_out"]),
        "held_out_numbers": dialogues["held_out"],
        "missing": missing_teachers(inputs, list(compared)),
    }


def _model_record(model: MeasuredModel, about: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": model.id,
        "label": model.label,
        "role": model.role,
        "name": model.name,
        "folder": str(model.folder),
        "fingerprint": model.fingerprint,
        **about,
    }


def _answers(
    dialogues: Sequence[Dialogue], asked: list[int], measured: dict[str, Measured], exact: dict[str, dict[int, bool]]
) -> list[dict[str, Any]]:
    return [
        {
            "dialogue": dialogues[number].id,
            "kind": dialogues[number].kind,
            "question": dialogues[number].messages[-2].content,
            "reference": dialogues[number].messages[-1].content,
            "answers": {
                model_id: {"text": one.exact[place], "exact": exact[model_id].get(number)}
                for model_id, one in measured.items()
            },
        }
        for place, number in enumerate(asked)
    ]


def _samples(
    prompts: Sequence[str], models: Sequence[MeasuredModel], measured: dict[str, Measured]
) -> list[dict[str, Any]]:
    asked = [model.id for model in models if model.role in SAMPLED_ROLES]
    return [
        {
            "prompt": prompt,
            "answers": {model_id: measured[model_id].samples[place] for model_id in asked},
        }
        for place, prompt in enumerate(prompts)
    ]
