"""What ends an assistant's turn where a template writes several control tokens there: the model is to write them all.

Most templates write one, and the layout finds it. Some write two or more, with words between them, and a model that was
taught the first alone would not stop. So what stands behind an answer is compared in two dialogues: one that ends with the
answer, and one that goes on. What both share is the end of the turn; the rest is the head of the next message.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import DialogueError
from .call_places import TAG, shared
from .dialogues import Dialogue, Message
from .rendered import Rendered, Turn
from .template_text import TemplateText

_QUESTION = Message("user", "How are you?")


def end_of_turn(template: TemplateText) -> str:
    """The template's text that ends each turn, if it holds more than one tag; "": it does not, or it cannot be told."""
    answer = Message("assistant", f"{template.mark}1z")
    asked = Dialogue("probe of the end of turn", (_QUESTION,))
    dialogues = [replace(asked, messages=(_QUESTION, answer, *more)) for more in ((), (_QUESTION, answer))]
    try:
        last, earlier = (template.write(dialogue).split(answer.content)[1] for dialogue in dialogues)
        if template.write(asked) == template.write(asked, prompt=True):
            return ""  # the head of the next answer stands behind the last one, and both dialogues share a part of it
    except (DialogueError, IndexError):
        return ""
    common = shared(last, earlier)
    tags = [tag for tag in TAG.finditer(earlier) if tag.end() <= common]
    return earlier[: tags[-1].end()] if len(tags) > 1 else ""


def with_end(turn: Turn, rendered: Rendered, ending: str) -> Turn:
    """The turn with where its end of turn ends.

    Args:
        ending: what `end_of_turn` found; after tool calls only its last tag need stand.
    """
    if turn.calls is None:
        return replace(turn, until=turn.end + len(ending)) if rendered.text.startswith(ending, turn.end) else turn
    tag = list(TAG.finditer(ending))[-1][0]
    limit = min([len(rendered.text), *(piece.start for piece in rendered.pieces if piece.message > turn.message)])
    place = rendered.text.find(tag, turn.end, limit)
    return replace(turn, until=place + len(tag)) if place >= 0 else turn
