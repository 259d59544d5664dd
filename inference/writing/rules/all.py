"""Every whole answer is kept; `writing.per_prompt` says how many of a prompt, drawn by lot."""

from collections.abc import Sequence

from fusechat.text.prompts import Prompt

from ..answers import Answer, Verdict, kept


def all_answers(prompt: Prompt, answers: Sequence[Answer]) -> list[Verdict]:
    """All are kept."""
    return [kept() for _ in answers]
