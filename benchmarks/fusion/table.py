"""Figures of seeds in, tables and the one JSON object out; intervals are over seeds, paired."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import stats

from evaluation.intervals import LEVEL, MIN_DIALOGUES, Interval, ratio_interval

from .worlds import SKILLS

Figures = dict[str, dict[str, list[float]]]
"""set (`known`, `new`) -> lexicon -> [nats, bytes, right answers, questions]."""
Results = dict[int, dict[str, Figures]]
"""seed -> arm -> figures."""


def difference(results: Results, arm: str, base: str, wording: str) -> dict[str, Any] | None:
    """An arm minus another one, on the skills, over the seeds that have both.

    Returns:
        `bits` and `base_bits` (per byte), `accuracy` and `base_accuracy` (shares), `difference` and `accuracy_difference`,
        each with an interval or None, `seeds`; None: no seed has both.
    """
    seeds = [seed for seed in sorted(results) if arm in results[seed] and base in results[seed]]
    if not seeds:
        return None
    mine, theirs = (np.array([_skills(results[seed][name][wording]) for seed in seeds]) for name in (arm, base))
    bits = (mine[:, 0] - theirs[:, 0]) / math.log(2)
    right = mine[:, 2] - theirs[:, 2]
    return {
        "bits": mine[:, 0].sum() / math.log(2) / mine[:, 1].sum(), "accuracy": mine[:, 2].sum() / mine[:, 3].sum(),
        "base_bits": theirs[:, 0].sum() / math.log(2) / theirs[:, 1].sum(),
        "base_accuracy": theirs[:, 2].sum() / theirs[:, 3].sum(),
        "difference": bits.sum() / mine[:, 1].sum(), "interval": seeds_interval(bits, mine[:, 1]),
        "accuracy_difference": right.sum() / mine[:, 3].sum(),
        "accuracy_interval": seeds_interval(right, mine[:, 3]), "seeds": len(seeds),
    }  # fmt: skip


def seeds_interval(differences: np.ndarray, sizes: np.ndarray) -> Interval | None:
    """95 % interval of sum(differences) / sum(sizes) over seeds.

    From five seeds on the product's own. Of two to four there is too little to draw from: Student's t on each seed's ratio, wide
    where seeds differ (4.3 standard errors with three).

    Args:
        differences: float [seeds].
        sizes: float [seeds], positive.
    Returns:
        (low, high), or None for a single seed.
    """
    num, ratios = len(differences), differences / sizes
    if num >= MIN_DIALOGUES:
        return ratio_interval(differences, sizes, seed=0)
    if num < 2:
        return None
    half = stats.t.ppf((1 + LEVEL) / 2, num - 1) * ratios.std(ddof=1) / math.sqrt(num)
    mean = differences.sum() / sizes.sum()
    return float(mean - half), float(mean + half)


def _skills(figures: dict[str, list[float]]) -> np.ndarray:
    sums: np.ndarray = np.sum([figures[skill] for skill in SKILLS], axis=0)
    return sums


def print_table(world: str, results: Results, arms: list[str]) -> None:
    """All arms of a world against SFT."""
    print(f"\n{world}, skills: bits per byte and right answers; minus SFT [95 % over {len(results)} seeds, paired]")
    print(
        "| arm | seeds | known bits | minus SFT | known right | minus SFT | new bits | minus SFT | new right | minus SFT |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for arm in arms:
        cells, seeds = [], 0
        for wording in ("known", "new"):
            change = difference(results, arm, "sft", wording)
            if change is None:
                break
            seeds = change["seeds"]
            cells += [
                f"{change['bits']:.3f}", _with_interval(change["difference"], change["interval"], "+.3f"),
                f"{change['accuracy']:.0%}",
                _with_interval(100 * change["accuracy_difference"], change["accuracy_interval"], "+.0f", 100),
            ]  # fmt: skip
        if cells:
            print(f"| {arm} | {seeds} | " + " | ".join(cells) + " |")


def _with_interval(value: float, interval: tuple[float, float] | None, form: str, factor: float = 1) -> str:
    return f"{value:{form}}" + (f" [{', '.join(f'{factor * end:{form}}' for end in interval)}]" if interval else "")


def power(results: Results) -> str:
    """Whether this experiment can show anything: it cannot where even the exact distribution does not beat SFT."""
    change = difference(results, "oracle", "sft", "known")
    if change is None or change["interval"] is None:
        return "one seed of the oracle is too few to say whether this experiment can show anything"
    low, high = change["interval"]
    verdict = "so the experiment has power" if high < 0 else "so this run can show NOTHING about fusion in this world"
    return f"oracle rows minus SFT, known wordings: {change['difference']:+.3f} [{low:+.3f}, {high:+.3f}]: {verdict}"


def can_show(oracle: dict[str, Any] | None) -> bool | None:
    """The same, of oracle minus SFT on known wordings; None: that has no interval."""
    return bool(oracle["interval"][1] < 0) if oracle and oracle["interval"] else None


def summary(worlds: dict[str, Results], best_merge: str) -> dict[str, Any]:
    """The JSON object. World B, known wordings, unless a key says otherwise; a figure that was not measured is None."""
    values: dict[str, Any] = {
        "best_merge": best_merge,
        "seeds": {world: sum("joint" in arms for arms in results.values()) for world, results in worlds.items()},
    }
    for prefix, wording in (("", "known"), ("new_", "new")):
        for key, world, arm, base in _compared(list(worlds), best_merge):
            put_difference(values, prefix + key, difference(worlds.get(world, {}), arm, base, wording))
        for world, results in worlds.items():
            suffix = "" if world == "B" else f"_{world}"
            joint = difference(results, "joint", "sft", wording)
            values[f"{prefix}joint_accuracy{suffix}"] = joint and round(joint["accuracy"], 4)
            values[f"{prefix}sft_accuracy{suffix}"] = joint and round(joint["base_accuracy"], 4)
            put_difference(values, f"{prefix}joint_minus_sft_accuracy{suffix}", joint, "accuracy_")
            values[f"{prefix}share_of_oracle{suffix}"] = _share(results, "joint", "oracle", wording)
    oracle = difference(worlds.get("B", {}), "oracle", "sft", "known")
    values["can_show"] = can_show(oracle)
    kept = _share(worlds.get("S5", {}), "joint", "joint_without_bad", "known")
    values["bad_source_costs_share_of_gain_S5"] = None if kept is None else round(1 - kept, 4)
    return values


def _compared(worlds: list[str], best_merge: str) -> Iterator[tuple[str, str, str, str]]:
    """Key of the JSON object, world, arm, and the arm that it is compared with."""
    pairs = f"trusted.{best_merge}"
    yield "joint_fading_minus_sft_bits", "B", "joint_gap", "sft"
    yield "pairwise_published_minus_sft_bits", "B", "published.sce", "sft"
    for base in ("sft", "smoothing"):
        yield f"pairs_merged_minus_{base}_bits", "B", pairs, base
        for world in dict.fromkeys(["B", *worlds]):
            yield f"joint_minus_{base}_bits" + ("" if world == "B" else f"_{world}"), world, "joint", base
    for option in ("where_unsure", "where_sure", "reverse_kl"):
        yield f"joint_{option}_minus_joint_bits", "B", f"joint_{option}", "joint"
    yield "bad_source_minus_without_bits_S5", "S5", "joint", "joint_without_bad"


def _share(results: Results, arm: str, whole: str, wording: str) -> float | None:
    """An arm's gain over SFT as a share of another's, over the seeds that have both; None: none has, or there is no gain."""
    both = {seed: arms for seed, arms in results.items() if arm in arms and whole in arms}
    gain, all_of_it = (difference(both, name, "sft", wording) for name in (arm, whole))
    if gain is None or all_of_it is None or not all_of_it["difference"]:
        return None
    return round(float(gain["difference"] / all_of_it["difference"]), 4)


def put_difference(values: dict[str, Any], key: str, change: dict[str, Any] | None, of: str = "") -> None:
    """A difference and the ends of its interval under `key`, `key_low` and `key_high`; `of`: "" (bits) or "accuracy_"."""
    interval = change[f"{of}interval"] if change else None
    values[key] = change and round(float(change[f"{of}difference"]), 4)
    values[f"{key}_low"], values[f"{key}_high"] = (round(end, 4) for end in interval) if interval else (None, None)
