"""What stands before an answer: where the model takes over in a trained dialogue, and in the prompt of a generation.

A template may put something between its generation prompt and an answer (an empty thought, the name of a channel), or
leave out in training what it puts into the prompt. A model that is asked otherwise than it was taught answers otherwise,
so this is probed once per model, and where the two differ the prompt is what stands before the answer in training.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from ..errors import DialogueError, ModelError
from .dialogues import Dialogue, Message
from .rendered import Rendered

if TYPE_CHECKING:
    from .skeletons import Renderer

QUESTION, THOUGHT, ANSWER = Message("user", "How are you?"), "I was asked how I am.", "Well, thank you."


def prompt_of(renderer: Renderer, reasons: bool) -> Literal["template", "trained"]:
    """Which prompt a model is asked with: the template's own where trained text begins with it, else the trained one.

    Args:
        reasons: answers begin with reasoning. Where the template shows none, they do not.
    Raises:
        DialogueError, ModelError: the template cannot show one exchange.
    """
    asked, trained = _probe(renderer, reasons)
    if trained.pieces[-1].message == trained.pieces[-2].message:
        return "template" if trained.before_answer().text.startswith(asked) else "trained"
    return "template" if trained.before_answer().text == asked else "trained"


def mark_before_reasoning(renderer: Renderer) -> str:
    """What a trained text has between the template's generation prompt and an answer's reasoning: the model writes it."""
    try:
        asked, trained = _probe(renderer, True)
    except (DialogueError, ModelError):
        return ""
    head = trained.text[: trained.pieces[1].start]
    is_shown = trained.pieces[1].name == "reasoning"
    return head[len(asked) :] if is_shown and head.startswith(asked) else ""


def _probe(renderer: Renderer, reasons: bool) -> tuple[str, Rendered]:
    """The template's prompt for a question, and the question with an answer."""
    question = Dialogue("probe of the prompt", (QUESTION,))
    answer = Message("assistant", ANSWER, reasoning=THOUGHT if reasons else "")
    trained = renderer.find(replace(question, messages=(QUESTION, answer)))
    return renderer.find(question, True).text, trained


def render_answerable(renderer: Renderer, dialogue: Dialogue) -> Rendered:
    """A dialogue that ends with a question, up to where the model takes over."""
    template = renderer.template.template
    if template.prompt == "template":
        return renderer.render(dialogue, True)
    answer = Message("assistant", ANSWER, reasoning=THOUGHT if template.reasons else "")
    return renderer.render(replace(dialogue, messages=(*dialogue.messages, answer))).before_answer()
