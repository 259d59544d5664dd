"""What stands before an answer: where the model takes over in a trained dialogue, and in the prompt of a generation.

A template may put something between its generation prompt and an answer (an empty thought, the name of a channel), or
leave out in training what it puts into the prompt. A model that is asked otherwise than it was taught answers otherwise,
so this is probed once per model, and where the two differ the prompt is what stands before the answer in training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from ..errors import DialogueError, ModelError
from .call_places import TAG
from .dialogue_records import END_THINK, THINK
from .dialogues import Dialogue, Message
from .rendered import ChatTemplate, Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


@dataclass(frozen=True)
class AnswerMarks:
    """What a template writes around the parts of an answer, white space at its ends left out.

    `start`: before reasoning; `end`: between reasoning and content; `plain_head`: what the model writes before the content of
    an answer without reasoning, "": nothing; `is_opened`: the prompt ends with `start`, so that every answer begins with
    reasoning.
    """

    start: str
    end: str
    plain_head: str
    is_opened: bool


def answer_marks(renderer: Renderer) -> AnswerMarks:
    """The marks of a template; those of a thought within a content where it shows no reasoning of its own."""
    asked, plain = _probe(renderer, False)
    head = plain.text[: plain.pieces[-1].start]
    plain_head = head[len(asked) :].strip() if head.startswith(asked) else ""
    try:
        _, trained = _probe(renderer, True)
        thought, answer = trained.pieces[-2:]
        is_shown = thought.message == answer.message
    except (DialogueError, ModelError):
        is_shown = False
    if not is_shown:
        return AnswerMarks(THINK, END_THINK, plain_head, asked.rstrip().endswith(THINK))
    head, end = trained.text[: thought.start], trained.text[thought.end : answer.start].strip()
    written = head[len(asked) :].strip() if head.startswith(asked) else ""
    tags = TAG.findall(head)
    tag = tags[-1] if tags and head.rstrip().endswith(tags[-1]) else ""
    return AnswerMarks(written or tag, end, plain_head, head.startswith(asked) and not written)


def spoken(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, token_ids: list[int]) -> str:
    """The text of an answer that a model wrote: what it says, without its reasoning and without special tokens.

    An answer that never came to the end of its reasoning says nothing. Words that stand between the control tokens of an
    end of turn are no part of what it says.
    """
    mark = _mark_after_reasoning(tokenizer, template) if template.reasons else ""
    ending = _words_of_end(tokenizer, template)
    if not mark and not ending:
        return str(tokenizer.decode(token_ids, skip_special_tokens=True))
    said = str(tokenizer.decode(token_ids, skip_special_tokens=False))
    if mark:
        _, ended, said = said.partition(mark)
        if not ended:
            return ""
    if ending:
        said = said.partition(ending)[0]
    for token in sorted(tokenizer.all_special_tokens, key=len, reverse=True):
        said = said.replace(token, "")
    return said


@lru_cache(maxsize=2)
def _mark_after_reasoning(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> str:
    """What the template writes between an answer's reasoning and its content; "": it shows no reasoning."""
    from .chat_template import renderer_of

    _, trained = _probe(renderer_of(tokenizer, template), True)
    thought, answer = trained.pieces[-2:]
    return trained.text[thought.end : answer.start].strip() if thought.message == answer.message else ""


@lru_cache(maxsize=2)
def _words_of_end(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> str:
    """An end of turn of several control tokens without the last of them, which engines cut off; "": it has one."""
    from .chat_template import renderer_of

    ending = renderer_of(tokenizer, template).end_of_turn
    return ending[: ending.rindex(TAG.findall(ending)[-1])] if ending else ""


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
