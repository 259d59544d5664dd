"""The answer that a judge behind an endpoint scores best is kept."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from fusechat.text.prompts import Prompt

from ..answers import Answer, Verdict, kept, refused


def judge(
    prompt: Prompt, answers: Sequence[Answer], *, min_score: Annotated[float, Field(ge=1, le=10)] = 1
) -> list[Verdict]:
    """All answers with a readable verdict are kept, the best first (`writing.per_prompt` says how many).

    Args:
        min_score: least score, 1 to 10, the mean over `repeats` of the judge.
    """
    verdicts = []
    for answer in answers:
        if answer.score is None:
            verdicts.append(refused("the judge gave no readable verdict"))
        elif answer.score < min_score:
            verdicts.append(refused("below min_score", answer.score))
        else:
            verdicts.append(kept(answer.score))
    return verdicts
