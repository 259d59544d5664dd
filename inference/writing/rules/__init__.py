"""The rules by name: which answers to a prompt become dialogues. To add one: write a function and list it here.

A rule is pure: `rule(prompt, answers, *, parameters) -> verdicts`, one for each answer, in their order. It sees whole answers
only (those that were cut off or could not be read are refused before), and may look at all of them at once. See
docs/extending.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..answers import Verdict
from .agreement import agreement
from .all import all_answers
from .judge import judge
from .likelihood import likelihood
from .reference import reference


@dataclass(frozen=True)
class Rule:
    """A rule and what it must know: nothing more, references of the prompts, scores of other models, or a judge's."""

    decide: Callable[..., list[Verdict]]
    needs: Literal["", "references", "scores", "judge"] = ""


RULES: dict[str, Rule] = {
    "agreement": Rule(agreement),
    "all": Rule(all_answers),
    "judge": Rule(judge, needs="judge"),
    "likelihood": Rule(likelihood, needs="scores"),
    "reference": Rule(reference, needs="references"),
}
"""Name in the run file -> rule."""
