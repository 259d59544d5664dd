"""The report as one document, and as what a terminal shows: what was measured in, report.json's content out.

docs/evaluation.md describes the document. Knows nothing about artifacts or HTML.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusechat.config.evaluation import SAMPLED_ROLES
from fusechat.models.measured_models import MeasuredModel
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
from .notes import held_out_notes, judge_notes, source_notes


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
            *held_out_notes(held_out, nats),
            *source_notes(inputs, (sample or {}).get("missing", [])),
            *judge_notes(judged),
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
