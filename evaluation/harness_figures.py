"""What the harness gave, as the report shows it: each model's figures in; values with their intervals out."""

import math
from typing import Any

from scipy import stats

from .intervals import LEVEL


def record(version: str | None, made: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The report's part on the harness; None where no task was asked for.

    Args:
        version: the harness's.
        made: model id -> figure -> value, error, questions, as `inference.harness` leaves them.
    """
    if version is None:
        return None
    names = list(dict.fromkeys(name for figures in made.values() for name in figures))
    models = {
        model_id: {name: {**figure(**entry), "questions": entry["questions"]} for name, entry in figures.items()}
        for model_id, figures in made.items()
    }
    return {"version": version, "figures": names, "models": models}


def figure(value: float, error: float | None, questions: int | None) -> dict[str, float | None]:
    """A value with its 95 % interval; none where the error is missing or 0. A value that is no number is null."""
    if not math.isfinite(value):
        return {"value": None, "low": None, "high": None}
    # An error of 0 says that all questions went alike, as with few and easy ones, and not that others would.
    if error is None or not math.isfinite(error) or error <= 0 or not questions or questions < 2:
        return {"value": value, "low": None, "high": None}
    half = float(stats.t.ppf((1 + LEVEL) / 2, questions - 1)) * error
    return {"value": value, "low": value - half, "high": value + half}
