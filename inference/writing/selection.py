"""Which answers become dialogues: all answers of all writers in; the dialogues that are kept, and the verdict on each, out.

Answers that are not whole are refused first; the rule decides on the others; then `per_prompt` of those that it keeps are taken,
no answer twice, the best first and equals by lot. One prompt is looked at after the other, so that memory does not grow with
their number.
"""

import contextlib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fusechat.config import JudgeSection, ModelSection
from fusechat.config.evaluation import JUDGE_MEANS
from fusechat.config.keywords import check_keywords, nearest
from fusechat.config.layout import RunLayout
from fusechat.config.recipe import Recipe
from fusechat.config.writing import WritingSection
from fusechat.errors import ConfigError, DialogueError
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact, Claim
from fusechat.storage.write_errors import storage_errors
from fusechat.text.dialogue_order import check_dialogue
from fusechat.text.dialogues import Dialogue, row_text
from fusechat.text.prompt_stage import PROMPTS_FILE
from fusechat.text.prompts import Prompt, saved_prompts
from fusechat.text.writing_files import DIALOGUES_FILE, VERDICTS_FILE

from .answers import Answer, Verdict, refused
from .rules import RULES, Rule
from .stage import saved_answers

Key = tuple[str, str, int]
"""Of an answer: prompt, writer, sample."""
SHOWN_ANSWERS, SHOWN_CHARACTERS = 3, 160
"""Of the refused ones, in a message."""


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


def recipe(
    section: WritingSection,
    writers: Sequence[str],
    scorers: Sequence[ModelSection],
    judge: JudgeSection | None,
    seed: int,
) -> Recipe:
    """All that decides which answers are kept, beside the answers and the scorers' files.

    Args:
        scorers, judge: of the run; what the rule does not ask for is left out.
        seed: of the lots.
    """
    rule, _ = find_rule(section)
    settings: dict[str, Any] = {
        "keep": section.keep,
        "parameters": check_keywords(rule.decide, section.parameters, "writing.parameters"),
        "per_prompt": section.per_prompt,
        "seed": seed,
    }
    if rule.needs == "scores":
        settings["scorers"] = [one.model_dump(mode="json") for one in scorers]
    if rule.needs == "judge" and judge is not None:
        settings["judge"] = judge.model_dump(mode="json", exclude={*JUDGE_MEANS, "modes", "baseline"})
    answers = {f"answers.{name}": f"writing/answers/{name}" for name in writers}
    return Recipe(settings, {"prompts": "writing/prompts", **answers})


def claim(
    layout: RunLayout, decided: Recipe, answers: Mapping[str, Artifact], digests: Mapping[str, Any] | None = None
) -> Claim:
    """Claim the folder of the dialogues.

    Args:
        decided: as `recipe` says it.
        answers: writer -> artifact of its answers.
        digests: scorer -> digests of its files, where there are some.
    Raises:
        ArtifactError: another recipe's dialogues stand there.
    """
    settings = {**decided.settings, **({"digests": dict(digests)} if digests else {})}
    prompts = artifact.load(layout.prompts_path, "prompts")
    parents = {"prompts": prompts, **{f"answers.{name}": one for name, one in answers.items()}}
    return artifact.claim(
        layout.written_path, "written", settings=settings, parents=parents, if_changed=layout.if_changed
    )


def each_prompt(layout: RunLayout, writers: Sequence[str]) -> Iterator[tuple[Prompt, list[Answer]]]:
    """Each prompt with the answers of all writers, in the writers' order."""
    files = [saved_answers(layout.written_answers_path(name)) for name in writers]
    for prompt, *answers in zip(saved_prompts(layout.prompts_path / PROMPTS_FILE), *files, strict=True):
        yield prompt, [answer for of_writer in answers for answer in of_writer]


def keep(
    claimed: Claim, layout: RunLayout, writers: Sequence[str], section: WritingSection, known: Known, *, seed: int
) -> Artifact:
    """Decide on all answers and write what is kept.

    Raises:
        DialogueError: nothing is kept; the reasons and three answers are shown. All answers stay where they are.
    """
    _, decide = find_rule(section)
    table: dict[tuple[str, str], Counter[str]] = {}
    shown: list[str] = []
    unanswered = num_prompts = num_kept = 0
    paths = [layout.written_path / name for name in (DIALOGUES_FILE, VERDICTS_FILE)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(storage_errors(layout.written_path))
        dialogues, verdicts = (stack.enter_context(path.open("w", encoding="utf-8")) for path in paths)
        for prompt, answers in each_prompt(layout, writers):
            num_prompts += 1
            answers = [_with_known(prompt, answer, known) for answer in answers]
            decided = decide_all(prompt, answers, decide, per_prompt=section.per_prompt, seed=seed)
            for answer, verdict in zip(answers, decided, strict=True):
                counted = table.setdefault((answer.writer, prompt.dialogue.kind), Counter())
                counted["" if verdict.is_kept else verdict.reason] += 1
                if verdict.is_kept:
                    dialogues.write(f"{row_text(dialogue_of(prompt, answer))}\n")
                    num_kept += 1
                elif len(shown) < SHOWN_ANSWERS:
                    shown.append(
                        f"{prompt.id!r}, {answer.writer}: {answer.text[:SHOWN_CHARACTERS]!r} ({verdict.reason})"
                    )
            unanswered += not any(verdict.is_kept for verdict in decided)
            verdicts.write(f"{_verdict_row(prompt, answers, decided)}\n")
    if not num_kept:
        for path in paths:
            path.unlink()
        raise DialogueError(_all_refused(section.keep, sum(table.values(), Counter()), shown))
    return claimed.finish(_counts(section.keep, table, num_prompts, unanswered))


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


def _with_known(prompt: Prompt, answer: Answer, known: Known) -> Answer:
    key = (prompt.id, answer.writer, answer.sample)
    return replace(answer, logprobs=known.logprobs.get(key, {}), score=known.scores.get(key))


def _lot(seed: int, prompt: Prompt, answer: Answer) -> str:
    """Which of two equals comes first: no writer has an advantage by its place in the list."""
    parts = [seed, prompt.id, answer.writer, answer.sample]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _verdict_row(prompt: Prompt, answers: Sequence[Answer], decided: Sequence[Verdict]) -> str:
    rows = [
        {**answer.to_row(), "kept": verdict.is_kept, "reason": verdict.reason, "rule_score": verdict.score}
        for answer, verdict in zip(answers, decided, strict=True)
    ]
    return json.dumps({"prompt": prompt.to_row(), "answers": rows}, ensure_ascii=False)


def _counts(rule: str, table: Mapping[tuple[str, str], Counter[str]], prompts: int, unanswered: int) -> dict[str, Any]:
    """Kept and refused answers per writer, kind and rule, and why."""
    rows = []
    for (writer, kind), counted in sorted(table.items()):
        reasons = {reason: count for reason, count in counted.most_common() if reason}
        rows.append(
            {
                "writer": writer, "kind": kind, "rule": rule, "answers": counted.total(), "kept": counted[""],
                "refused": reasons,
            }
        )  # fmt: skip
    return {
        "prompts": prompts,
        "answers": sum(row["answers"] for row in rows),
        "dialogues": sum(row["kept"] for row in rows),
        "prompts_without_answer": unanswered,
        "table": rows,
    }


def _all_refused(rule: str, reasons: Counter[str], shown: Sequence[str]) -> str:
    counted = "; ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(SHOWN_ANSWERS))
    return (
        f"writing.keep: {rule}: none of the {reasons.total():,} answers is kept ({counted}); three of them:\n  "
        + "\n  ".join(shown)
        + "\nAll answers are kept where they are: choose another rule or other parameters, and start the same command again; other "
        "answers take another temperature, max_new_tokens or writers"
    )
