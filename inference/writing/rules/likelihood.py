"""The answer that the other models find most probable is kept: no reward model is needed.

Scores are nats per byte of the answer, so that models of different tokenizers, and answers of different lengths, compare. No
writer's own opinion counts. An answer's score is the mean over the models that may judge it.
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from fusechat.text.prompts import Prompt

from ..answers import Answer, Verdict, kept, refused


def likelihood(
    prompt: Prompt, answers: Sequence[Answer], *, min_logprob: Annotated[float, Field(le=0)] | None = None
) -> list[Verdict]:
    """All answers that others could score are kept, the most probable first (`writing.per_prompt` says how many).

    Args:
        min_logprob: least mean logprob of an answer, nats per byte; null: no limit.
    """
    verdicts = []
    for answer in answers:
        if not answer.logprobs:
            verdicts.append(refused("no other model could score it"))
            continue
        score = sum(answer.logprobs.values()) / len(answer.logprobs)
        is_good = min_logprob is None or score >= min_logprob
        verdicts.append(kept(score) if is_good else refused("less probable than min_logprob", score))
    return verdicts
