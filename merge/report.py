"""The merge report: per tensor the coefficient of each target, the size of its update, and the share erased by sign."""

import math
from typing import Any

import numpy as np

from .recipe import MergeRecipe

REPORT_FILE = "merge_report.json"


def make_report(recipe: MergeRecipe, records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Join the tensors' records.

    Args:
        records: tensor name -> {"update_norm", "coefficients", "erased_share"}, each a list over the targets: the
            Euclidean norm of target minus base; the weight it got; the share of the sum of |delta| that stood for the
            sign election and lost. The last two are absent where a method has none.
    Returns:
        method, parameters, targets (the order of all lists), `tensors`, and `total`: the norm of each whole update, its
        root mean square, and the means of coefficient and erased share over the tensors, weighted by their elements.
    """
    sizes = {tensor.name: math.prod(tensor.shape) for shard in recipe.shards for tensor in shard if tensor.merged}
    merged = {name: records[name] for name in sizes if records[name]}
    total: dict[str, Any] = {"elements": sum(sizes.values())}
    norms = np.sqrt(np.sum([np.square(record["update_norm"]) for record in merged.values()], axis=0))
    total["update_norm"] = norms.tolist()
    total["update_rms"] = (norms / math.sqrt(max(total["elements"], 1))).tolist()
    for key in ("coefficients", "erased_share"):
        figures = {name: record[key] for name, record in merged.items() if key in record}
        if figures:
            weights = np.array([sizes[name] for name in figures], np.float64)
            total[key] = (weights @ np.array(list(figures.values())) / weights.sum()).tolist()
    return {
        "fingerprint": recipe.fingerprint,
        "method": recipe.method_name,
        "parameters": recipe.parameters,
        "base": recipe.base,
        "targets": recipe.targets,
        "vocabulary": recipe.notes,
        "total": total,
        "tensors": merged,
    }
