"""Judging: models' answers in; scores and wins with two kinds of uncertainty out.

The interval says how a figure would vary with other questions. The judge's own noise is the standard deviation that the
same figure shows when nothing but the judge's draws change; it comes from repeating every verdict. Both are needed, however
many questions there are. The noise of a difference of two scores is the root of the sum of the squares of their noises.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusechat.config.evaluation import JudgeSection
from fusechat.text.questions import Question

from ..figures import bounds, supported
from ..intervals import ratio_interval, win_rate_interval
from .judge_client import Reply, Request, ask_all
from .judge_prompts import Messages, pairwise_prompt, read_score, read_verdict, single_prompt


@dataclass(frozen=True)
class AnswerSet:
    """Questions and each model's answers to them: model id -> per question one text per turn, None where it had no room."""

    name: str
    questions: Sequence[Question]
    answers: dict[str, Sequence[Sequence[str] | None]]


@dataclass(frozen=True)
class _Verdict:
    """One thing that is asked for: `swapped` puts the baseline first."""

    answer_set: str
    mode: str
    model: str
    question: int
    turn: int
    swapped: bool
    messages: Messages


def judge_answers(
    section: JudgeSection,
    sets: Sequence[AnswerSet],
    cache: Path,
    *,
    seed: int,
    on_reply: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Let the judge score and compare the answers.

    Args:
        cache: JSON Lines file of the replies; kept beside the report, so that a changed report pays for none twice.
    Returns:
        `model`, `url`, `repeats`, `sets` (set -> `single` and `pairwise`, model -> figures) and `cost`.
    Raises:
        ConfigError, JudgeError: as for `ask_all`.
    """
    verdicts = [verdict for answer_set in sets for verdict in _verdicts(section, answer_set)]
    requests = [
        Request(tuple((message["role"], message["content"]) for message in verdict.messages), repeat)
        for verdict in verdicts
        for repeat in range(section.repeats)
    ]
    replies = ask_all(section, requests, cache, on_reply=on_reply)
    asked = [verdict for verdict in verdicts for _ in range(section.repeats)]
    grouped: dict[tuple[str, str, str], list[tuple[_Verdict, Reply]]] = {}
    for verdict, reply in zip(asked, replies, strict=True):
        grouped.setdefault((verdict.answer_set, verdict.mode, verdict.model), []).append((verdict, reply))
    by_set: dict[str, dict[str, dict[str, Any]]] = {answer_set.name: {} for answer_set in sets}
    for (name, mode, model), items in grouped.items():
        figures = _single_figures(items, seed) if mode == "single" else _pairwise_figures(items, seed)
        by_set[name].setdefault(mode, {})[model] = figures
    return {
        "model": section.model, "url": section.url, "repeats": section.repeats, "temperature": section.temperature,
        "baseline": section.baseline if "pairwise" in section.modes else None, "sets": by_set,
        "cost": _cost(section, replies),
    }  # fmt: skip


def num_verdicts(section: JudgeSection, sets: Sequence[AnswerSet]) -> int:
    """Replies that will be asked for or read."""
    return section.repeats * sum(1 for answer_set in sets for _ in _verdicts(section, answer_set))


def _verdicts(section: JudgeSection, answer_set: AnswerSet) -> Iterator[_Verdict]:
    for model, answers in answer_set.answers.items():
        for number, (question, given) in enumerate(zip(answer_set.questions, answers, strict=True)):
            if given is None:
                continue
            for end in range(1, len(given) + 1):
                turns, reference = question.turns[:end], question.reference[:end]
                place = (answer_set.name, model, number, end - 1)
                if "single" in section.modes:
                    yield _verdict("single", place, False, single_prompt(turns, given[:end], reference))
                other = answer_set.answers[section.baseline][number] if "pairwise" in section.modes else None
                if other is not None and model != section.baseline:
                    for swapped in (False, True):
                        pair = (other[:end], given[:end]) if swapped else (given[:end], other[:end])
                        yield _verdict("pairwise", place, swapped, pairwise_prompt(turns, *pair, reference))


def _verdict(mode: str, place: tuple[str, str, int, int], swapped: bool, messages: Messages) -> _Verdict:
    name, model, question, turn = place
    return _Verdict(name, mode, model, question, turn, swapped, messages)


def _single_figures(items: list[tuple[_Verdict, Reply]], seed: int) -> dict[str, Any]:
    """score (mean over questions and turns, 1 to 10), interval over questions, the judge's noise, and counts."""
    values = [(verdict, None if reply.fault else read_score(reply.text)) for verdict, reply in items]
    by_question: dict[int, dict[int, list[float]]] = {}
    for verdict, value in values:
        if value is not None:
            by_question.setdefault(verdict.question, {}).setdefault(verdict.turn, []).append(value)
    turns = sorted({verdict.turn for verdict, _ in values})
    return {
        **_figures([list(cells.values()) for cells in by_question.values()], seed, name="score"),
        "by_turn": {
            str(turn + 1): _mean([v for cells in by_question.values() for v in cells.get(turn, [])]) for turn in turns
        },
        "verdicts": len(items),
        **_nonsense([reply for (_, reply), (_, value) in zip(items, values, strict=True) if value is None]),
    }


def _pairwise_figures(items: list[tuple[_Verdict, Reply]], seed: int) -> dict[str, Any]:
    """win_rate (a tie counts half), what its interval supports, noise, and the share of pairs that both orders agree on.

    A turn counts only with a readable verdict in both orders: one alone would carry what the judge gives to the place.
    """
    by_question: dict[int, dict[tuple[int, bool], list[float]]] = {}
    nonsense: list[Reply] = []
    for verdict, reply in items:
        value = None if reply.fault else read_verdict(reply.text)
        if value is None:
            nonsense.append(reply)
            continue
        won = 1 - value if verdict.swapped else value
        by_question.setdefault(verdict.question, {}).setdefault((verdict.turn, verdict.swapped), []).append(won)
    paired = {
        question: {place: values for place, values in cells.items() if (place[0], not place[1]) in cells}
        for question, cells in by_question.items()
    }
    alone = sum(len(v) for q, cells in by_question.items() for place, v in cells.items() if place not in paired[q])
    figures = _figures([list(cells.values()) for cells in paired.values() if cells], seed, name="win_rate")
    both = [
        (float(np.mean(values)), float(np.mean(cells[turn, True])))
        for cells in paired.values()
        for (turn, swapped), values in cells.items()
        if not swapped
    ]
    agree = [(one - 0.5) * (other - 0.5) > 0 or one == other == 0.5 for one, other in both]
    low, high = figures["low"], figures["high"]
    return {
        **figures,
        "supports": supported(None if low is None else (low - 0.5, high - 0.5)),
        "orders_agree": float(np.mean(agree)) if agree else None,
        "first_wins": _mean([one for one, _ in both] + [1 - other for _, other in both]),
        "verdicts": len(items),
        **_nonsense(nonsense),
        "alone": alone,
    }


def _nonsense(replies: Sequence[Reply]) -> dict[str, Any]:
    """How many replies give no verdict, and reason -> how many of them, the most frequent first."""
    reasons = Counter(reply.fault or "no verdict in the last line" for reply in replies)
    return {"nonsense": len(replies), "nonsense_reasons": dict(reasons.most_common())}


def _figures(questions: list[list[list[float]]], seed: int, *, name: str) -> dict[str, Any]:
    """The mean over questions of the mean over their cells (turns, orders), each the mean of its repeats.

    Args:
        questions: question -> cell -> repeated verdicts.
    """
    means = np.array([np.mean([np.mean(values) for values in cells]) for cells in questions])
    wins = name == "win_rate"
    interval = win_rate_interval(means) if wins else ratio_interval(means, np.ones(len(means)), seed=seed)
    return {
        name: float(means.mean()) if len(means) else None,
        **bounds(interval),
        "judge_noise": _noise(questions),
        "questions": len(means),
    }


def _noise(questions: list[list[list[float]]]) -> float | None:
    """Standard deviation of the mean when the judge is asked everything again; None where nothing was repeated.

    The variance of each cell's repeats, pooled over all cells, for each cell divided by its number of verdicts.
    """
    cells = [values for question in questions for values in question]
    freedom = sum(len(values) - 1 for values in cells)
    if not freedom:
        return None
    pooled = sum(float(np.var(values)) * len(values) for values in cells) / freedom
    shares = [pooled / len(values) / len(question) ** 2 for question in questions for values in question]
    return float(np.sqrt(sum(shares)) / len(questions))


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _cost(section: JudgeSection, replies: Sequence[Reply]) -> dict[str, Any]:
    """Tokens and price of all replies of the report, and how many of them were asked for this time."""
    read, written = sum(reply.prompt_tokens for reply in replies), sum(reply.completion_tokens for reply in replies)
    price = (read * section.prompt_price + written * section.completion_price) / 1e6
    asked = [reply for reply in replies if not reply.cached]
    return {
        "verdicts": len(replies), "asked_now": len(asked), "attempts_now": sum(reply.attempts for reply in asked),
        "prompt_tokens": read, "completion_tokens": written, "price": round(price, 6),
    }  # fmt: skip
