"""Which answers become dialogues: all answers of all writers in; the dialogues that are kept, and the verdict on each, out.

Who is kept is said in `decisions`. One prompt is looked at after the other, so that memory does not grow with their number.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fusechat.config import JudgeSection, ModelSection
from fusechat.config.evaluation import JUDGE_MEANS
from fusechat.config.keywords import check_keywords
from fusechat.config.layout import RunLayout
from fusechat.config.recipe import Recipe, with_files
from fusechat.config.writing import WritingSection
from fusechat.errors import DialogueError
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact, Claim
from fusechat.storage.write_errors import storage_errors
from fusechat.text.dialogues import row_text
from fusechat.text.prompt_stage import PROMPTS_FILE
from fusechat.text.prompts import Prompt, saved_prompts
from fusechat.text.writing_files import DIALOGUES_FILE, VERDICTS_FILE

from .answers import Answer, Verdict
from .decisions import Known, decide_all, dialogue_of, find_rule, with_known
from .stage import saved_answers

SHOWN_ANSWERS, SHOWN_CHARACTERS = 3, 160
"""Of the refused ones, in a message."""


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
        digests: scorer -> digests of its files, where the rule asks scorers.
    Raises:
        ArtifactError: another recipe's dialogues stand there.
    """
    settings = dict(decided.settings)
    if digests:
        scorers = [with_files(one, digests=digests[one["name"]]) for one in settings["scorers"]]
        settings["scorers"] = scorers
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
            answers = [with_known(prompt, answer, known) for answer in answers]
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
