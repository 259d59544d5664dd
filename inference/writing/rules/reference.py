"""An answer is kept if it equals the prompt's reference."""

from collections.abc import Sequence

from fusechat.text.exact_match import Compare, compared_part
from fusechat.text.prompts import Prompt

from ..answers import Answer, Verdict, kept, refused


def reference(
    prompt: Prompt, answers: Sequence[Answer], *, compare: Compare = "text", pattern: str = ""
) -> list[Verdict]:
    """Equal answers are kept.

    Args:
        compare: `text`, all of it as evaluation compares; `number`, the last number in it, as in arithmetic; `pattern`, the
            last place that a regular expression finds in it (its first group, if it has one).
        pattern: that expression; it is looked for in the reference too, which counts as it stands where it is not found.
    """
    if not prompt.reference:
        return [refused("the prompt has no reference") for _ in answers]
    wanted = compared_part(prompt.reference, compare, pattern) or compared_part(prompt.reference, "text")
    parts = [compared_part(answer.text, compare, pattern) for answer in answers]
    return [kept(1.0) if part is not None and part == wanted else refused("not the reference") for part in parts]
