"""Which teachers' rows the models were compared with: a run in; the finished rows of each split out."""

from dataclasses import dataclass
from typing import Literal

from fusechat.config.layout import teacher_key
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact

from .inputs import ReportInputs

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class ComparedRows:
    """One teacher's finished rows on the pivot's tokens of a split."""

    teacher: str
    split: Split
    rows: Artifact
    """Kind `logprobs` (the pivot's own) or `aligned`."""


def compared_rows(inputs: ReportInputs) -> list[ComparedRows]:
    """All that there are; none where no divergence is asked for."""
    if not inputs.compares_rows:
        return []
    compared: list[ComparedRows] = []
    splits: tuple[Split, ...] = ("train", "held_out")
    for model in inputs.models:
        for split in splits:
            key = teacher_key(model.name, split, is_pivot=model.name == inputs.pivot.name)
            url, kind = inputs.layout.place(key)
            if artifact.is_finished(url):
                rows = artifact.load(url, kind)
                if rows.counts.get("rows") != 0:
                    compared.append(ComparedRows(model.name, split, rows))
    return compared


def missing_teachers(inputs: ReportInputs, compared: list[ComparedRows]) -> list[str]:
    """Teachers whose rows on the training dialogues are not finished."""
    if not inputs.compares_rows:
        return []
    present = {one.teacher for one in compared if one.split == "train"}
    return [model.name for model in inputs.models if model.name not in present]
