"""The answer that most samples of all writers agree on is kept."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from fusechat.text.exact_match import Compare, compared_part
from fusechat.text.prompts import Prompt

from ..answers import Answer, Verdict, kept, refused


def agreement(
    prompt: Prompt,
    answers: Sequence[Answer],
    *,
    min_share: Annotated[float, Field(gt=0, le=1)] = 0.5,
    compare: Compare = "text",
    pattern: str = "",
) -> list[Verdict]:
    """Answers of the largest group are kept, if it is large enough; of two that are equally large neither is.

    Args:
        min_share: smallest share of the whole answers that must agree, in (0, 1].
        compare, pattern: what of an answer must be equal, as for `reference`.
    """
    parts = [compared_part(answer.text, compare, pattern) for answer in answers]
    counts = Counter(part for part in parts if part is not None).most_common(2)
    if not counts or (len(counts) == 2 and counts[0][1] == counts[1][1]):
        return [refused("no answer is the most frequent one") for _ in answers]
    agreed, share = counts[0][0], counts[0][1] / len(answers)
    if share < min_share:
        return [refused("too few agree", share if part == agreed else 0.0) for part in parts]
    return [kept(share) if part == agreed else refused("not what most say") for part in parts]
