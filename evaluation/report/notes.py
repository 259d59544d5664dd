"""What a reader of a report must know before believing a figure: what was measured in, sentences out."""

from collections import Counter
from typing import Any

import numpy as np

from fusechat.storage import artifact
from fusechat.storage.files import read_json

from ..figures import HeldOut
from ..inputs import ReportInputs
from ..intervals import MIN_DIALOGUES

MAX_NAMED = 10
"""Dialogues named in one note."""


def held_out_notes(held_out: HeldOut, nats: dict[str, np.ndarray]) -> list[str]:
    """Of held-out dialogues that are too few, or too long for a model; `nats`: model id -> float64 [dialogues]."""
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


def source_notes(inputs: ReportInputs, missing_rows: list[str]) -> list[str]:
    """What the figures lack, and held-out dialogues that were trained on; `missing_rows`: teachers without rows."""
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


def judge_notes(judged: dict[str, Any] | None) -> list[str]:
    """What the judge did not say; `judged`: the report's part on it."""
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
