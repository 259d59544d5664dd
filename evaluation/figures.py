"""From what was measured to the tables of the report: nats and answers in, bits per byte, accuracies, differences out.

Bits per byte are nats / ln 2 / bytes of the assistant's content (UTF-8), end-of-turn tokens included: the same bytes for
every tokenizer, so models of different tokenizers can be compared. Knows nothing about networks or pages.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusechat.text.dialogues import Dialogue

from . import ALL
from .intervals import Interval, accuracy_difference_interval, accuracy_interval, ratio_interval


@dataclass(frozen=True)
class HeldOut:
    """The held-out dialogues: `ids`, `kinds` and `num_bytes` (of what the assistant says, int64), each [dialogues]."""

    ids: tuple[str, ...]
    kinds: np.ndarray
    num_bytes: np.ndarray

    @classmethod
    def of(cls, dialogues: Sequence[Dialogue]) -> "HeldOut":
        """What the figures need to know of the dialogues."""
        sizes = [dialogue.target_bytes for dialogue in dialogues]
        kinds = np.array([dialogue.kind or "other" for dialogue in dialogues], dtype=object)
        return cls(tuple(dialogue.id for dialogue in dialogues), kinds, np.array(sizes, dtype=np.int64))

    @property
    def kind_names(self) -> list[str]:
        """In the order in which most dialogues come first."""
        names, counts = np.unique(self.kinds.astype(str), return_counts=True)
        return [str(names[place]) for place in np.argsort(-counts, kind="stable")]

    def masks(self, kinds: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """`all`, then each kind: bool [dialogues]."""
        names = self.kind_names if kinds is None else list(kinds)
        everywhere = np.isin(self.kinds.astype(str), names)
        return {ALL: everywhere, **{name: self.kinds == name for name in names}}


def loss_figures(held_out: HeldOut, nats: np.ndarray, *, seed: int) -> dict[str, dict[str, Any]]:
    """Bits per byte of one model.

    Args:
        nats: float64 [dialogues], NaN where the model could not read the dialogue.
    Returns:
        `all` and each kind -> bits_per_byte, low, high (null where too few dialogues), dialogues, bytes, nats.
    """
    bits = nats / math.log(2)
    figures = {}
    for name, mask in held_out.masks().items():
        scored = mask & np.isfinite(nats)
        figures[name] = {
            **_ratio("bits_per_byte", bits[scored], held_out.num_bytes[scored], seed=seed),
            "bytes": int(held_out.num_bytes[scored].sum()),
            "nats": float(nats[scored].sum()),
        }
    return figures


def loss_differences(
    held_out: HeldOut, first: np.ndarray, second: np.ndarray, *, seed: int
) -> dict[str, dict[str, Any]]:
    """Bits per byte of one model minus another's, over the dialogues that both could read.

    Args:
        first, second: nats, float64 [dialogues].
    Returns:
        `all` and each kind -> difference, low, high, dialogues, supports (see `supported`).
    """
    bits = (first - second) / math.log(2)
    figures = {}
    for name, mask in held_out.masks().items():
        scored = mask & np.isfinite(bits)
        figures[name] = _with_support(_ratio("difference", bits[scored], held_out.num_bytes[scored], seed=seed))
    return figures


def divergence_figures(measured: dict[str, Any], *, seed: int) -> dict[str, dict[str, Any]]:
    """Divergence of one model from each teacher.

    Args:
        measured: teacher -> `nats` (summed over rows, null where the dialogue was not read) and `rows`, one per dialogue.
    Returns:
        teacher -> nats_per_row, low, high, dialogues, rows.
    """
    figures = {}
    for teacher, entry in measured.items():
        nats, rows = np.array(entry["nats"], np.float64), np.array(entry["rows"], np.int64)
        scored = np.isfinite(nats) & (rows > 0)
        figures[teacher] = {
            **_ratio("nats_per_row", nats[scored], rows[scored], seed=seed),
            "rows": int(rows[scored].sum()),
        }
    return figures


def divergence_differences(first: dict[str, Any], second: dict[str, Any], *, seed: int) -> dict[str, dict[str, Any]]:
    """Divergence of one model from each teacher minus another's, over the same rows.

    Returns:
        teacher -> difference (nats per row), low, high, dialogues, supports.
    """
    figures = {}
    for teacher in first.keys() & second.keys():
        nats = np.array(first[teacher]["nats"], np.float64) - np.array(second[teacher]["nats"], np.float64)
        rows = np.array(first[teacher]["rows"], np.int64)
        scored = np.isfinite(nats) & (rows > 0)
        figures[teacher] = _with_support(_ratio("difference", nats[scored], rows[scored], seed=seed))
    return dict(sorted(figures.items()))


def accuracy_figures(held_out: HeldOut, exact: dict[int, bool], kinds: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Share of exact answers of one model.

    Args:
        exact: dialogue number -> whether the answer was the reference; dialogues that were not asked are missing.
    Returns:
        `all` and each kind -> accuracy, low, high, exact, asked.
    """
    figures = {}
    for name, mask in held_out.masks(kinds).items():
        outcomes = np.array([good for number, good in exact.items() if mask[number]], dtype=bool)
        figures[name] = {
            "accuracy": float(outcomes.mean()) if len(outcomes) else None,
            **bounds(accuracy_interval(outcomes)),
            "exact": int(outcomes.sum()),
            "asked": len(outcomes),
        }
    return figures


def accuracy_differences(
    held_out: HeldOut, first: dict[int, bool], second: dict[int, bool], kinds: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Accuracy of one model minus another's, over the dialogues that both were asked about.

    Returns:
        `all` and each kind -> difference, low, high, asked, supports.
    """
    both = sorted(first.keys() & second.keys())
    figures = {}
    for name, mask in held_out.masks(kinds).items():
        numbers = [number for number in both if mask[number]]
        one, other = (np.array([outcomes[number] for number in numbers], dtype=bool) for outcomes in (first, second))
        figures[name] = _with_support(
            {
                "difference": float(one.mean() - other.mean()) if numbers else None,
                **bounds(accuracy_difference_interval(one, other)),
                "asked": len(numbers),
            }
        )
    return figures


def supported(interval: Interval | None) -> str:
    """What a difference's interval says: `lower`, `higher`, `undecided` (it holds 0) or `too few`."""
    if interval is None:
        return "too few"
    low, high = interval
    return "lower" if high < 0 else "higher" if low > 0 else "undecided"


def compared_pairs(ids: Sequence[str]) -> list[tuple[str, str]]:
    """(model, compared with): what the run set out to show comes first."""
    targets = [model_id for model_id in ids if model_id.startswith("target.")]
    sources = [model_id for model_id in ids if model_id.startswith("source.")]
    pairs = [("fused", "sft"), ("fused", "pivot"), *(("fused", target) for target in targets)]
    pairs += [(target, "sft") for target in targets] + [(target, "pivot") for target in targets]
    rounds = [model_id for model_id in ids if model_id.startswith("round.")]
    pairs += [
        (one, other)
        for one, before in zip(rounds, ["fused", *rounds], strict=False)
        for other in dict.fromkeys((before, "fused", "sft"))
    ]
    pairs += [("sft", "pivot"), *((fused, source) for fused in ("fused", "target.joint") for source in sources)]
    return [(one, other) for one, other in pairs if one in ids and other in ids]


def bounds(interval: Interval | None) -> dict[str, float | None]:
    """`low` and `high`, null where there is no interval."""
    return {"low": interval[0] if interval else None, "high": interval[1] if interval else None}


def _ratio(name: str, amounts: np.ndarray, sizes: np.ndarray, *, seed: int) -> dict[str, Any]:
    """Under `name` the sum of amounts over the sum of sizes, both [dialogues]; its interval, and how many dialogues."""
    return {
        name: float(amounts.sum() / sizes.sum()) if len(amounts) else None,
        **bounds(ratio_interval(amounts, sizes, seed=seed)),
        "dialogues": len(amounts),
    }


def _with_support(figures: dict[str, Any]) -> dict[str, Any]:
    """A difference with what its interval says."""
    low, high = figures["low"], figures["high"]
    return {**figures, "supports": supported(None if low is None else (low, high))}
