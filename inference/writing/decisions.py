"""The verdicts on the answers to one prompt: a prompt and all its answers in; which of them become dialogues, and why not, out.

Answers that are not whole are refused first; the rule decides on the others; then `per_prompt` of those that it keeps are taken,
no answer twice, the best first and equals by lot. Knows nothing about files.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fusechat.config.keywords import check_keywords, nearest
from fusechat.config.writing import WritingSection
from fusechat.errors import ConfigError, DialogueError
from fusechat.text.dialogue_order import check_dialogue
from fusechat.text.dialogues import Dialogue
from fusechat.text.prompts import Prompt

from .answers import Answer, Verdict, refused
from .rules import RULES, Rule

Key = tuple[str, str, int]
"""Of an answer: prompt, writer, sample."""


@dataclass(frozen=True)
class Known:
    """What is known of answers beside their texts, by their keys: other models' logprobs per byte, a judge's score."""

    logprobs: Mapping[Key, Mapping[str, float]]
    scores: Mapping[Key, float]

    @classmethod
    def nothing(cls) -> "Known":
        """For rules that look at the texts alone."""
        return cls({}, {})


def find_rule(section: WritingSection) -> tuple[Rule, Callable[..., list[Verdict]]]:
    """The rule of a run and its function with all its parameters.

    Raises:
        ConfigError: no such rule or parameter (the nearest is named), or a value out of range.
    """
    if section.keep not in RULES:
        raise ConfigError(f"writing.keep: found {section.keep!r}; {nearest(section.keep, RULES)}")
    rule = RULES[section.keep]
    parameters = check_keywords(rule.decide, section.parameters, "writing.parameters")
    _check_pattern(parameters)
    return rule, partial(rule.decide, **parameters)


def _check_pattern(parameters: Mapping[str, Any]) -> None:
    """Raises ConfigError where a rule is to look for a regular expression that is not there, or is none."""
    if parameters.get("compare") != "pattern":
        return
    if not parameters["pattern"]:
        raise ConfigError("writing.parameters.pattern: compare: pattern looks for a regular expression; give one")
    try:
        re.compile(parameters["pattern"])
    except re.error as error:
        raise ConfigError(
            f"writing.parameters.pattern: {parameters['pattern']!r} is no regular expression ({error}); correct it"
        ) from None


def decide_all(
    prompt: Prompt,
    answers: Sequence[Answer],
    decide: Callable[..., list[Verdict]],
    *,
    per_prompt: int | None,
    seed: int,
) -> list[Verdict]:
    """The verdict on each answer to one prompt."""
    verdicts = [refused(fault) if (fault := _fault(prompt, answer)) else None for answer in answers]
    whole = [number for number, verdict in enumerate(verdicts) if verdict is None]
    decided = decide(prompt, [answers[number] for number in whole]) if whole else []
    for number, verdict in zip(whole, decided, strict=True):
        verdicts[number] = verdict
    final: list[Verdict] = [verdict for verdict in verdicts if verdict is not None]
    taken: list[Answer] = []
    for number in sorted(whole, key=lambda n: (-final[n].score, _lot(seed, prompt, answers[n]))):
        if not final[number].is_kept:
            continue
        if any(answers[number].messages == other.messages for other in taken):
            final[number] = refused("the same as one that is kept", final[number].score)
        elif per_prompt is not None and len(taken) >= per_prompt:
            final[number] = refused("per_prompt others are kept", final[number].score)
        else:
            taken.append(answers[number])
    return final


def dialogue_of(prompt: Prompt, answer: Answer) -> Dialogue:
    """The dialogue that an answer makes of its prompt."""
    dialogue = prompt.answered(answer.messages)
    return replace(dialogue, id=f"{prompt.id}:{answer.writer}.{answer.sample}", author=answer.writer)


def _fault(prompt: Prompt, answer: Answer) -> str:
    if answer.fault:
        return answer.fault
    try:
        check_dialogue(dialogue_of(prompt, answer))
    except DialogueError as error:
        return str(error)
    return ""


def with_known(prompt: Prompt, answer: Answer, known: Known) -> Answer:
    key = (prompt.id, answer.writer, answer.sample)
    return replace(answer, logprobs=known.logprobs.get(key, {}), score=known.scores.get(key))


def _lot(seed: int, prompt: Prompt, answer: Answer) -> str:
    """Which of two equals comes first: no writer has an advantage by its place in the list."""
    parts = [seed, prompt.id, answer.writer, answer.sample]
    return hashlib.sha256(repr(parts).encode()).hexdigest()
