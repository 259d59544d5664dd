"""What the pivot is trained on: dialogues in; those that its template shows, cut to fit, one for each thought it shows, out.

Templates of reasoning models hide the thoughts of earlier turns. A dialogue with several is then shown once for each of
them, up to its turn; every turn is a target in exactly one of these dialogues.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import DialogueError, ModelError
from .chat_template import render
from .dialogues import Dialogue, Message
from .rendered import ChatTemplate
from .row_values import listed
from .tokenization import tokenize_dialogue, tokenize_each

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class FittedDialogue:
    """What became of one dialogue: `examples` that stand in its place, `note` (what was cut or set aside, in words),
    `refused` (why the template does not show it); both texts may be empty.
    """

    examples: tuple[Dialogue, ...]
    note: str = ""
    refused: str = ""


def fit_each(
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate | str,
    dialogues: Sequence[Dialogue],
    max_tokens: int,
    ids: set[str],
) -> Iterator[FittedDialogue]:
    """Cut dialogues to `max_tokens`, set aside what the template does not show, and show every thought, one by one.

    Args:
        ids: that new examples must not have; those of the new ones are added.
    """
    for dialogue, tokenized in zip(dialogues, tokenize_each(tokenizer, template, dialogues), strict=True):
        if isinstance(tokenized, Exception):
            yield FittedDialogue((), refused=str(tokenized))
            continue
        fitting: Dialogue | None = dialogue
        note = ""
        if len(tokenized) > max_tokens:
            try:
                fitting, note = cut_dialogue(tokenizer, template, dialogue, max_tokens)
            except (DialogueError, ModelError) as error:  # what is left of it is not shown
                yield FittedDialogue((), refused=str(error))
                continue
        if fitting is not None and not fitting.is_trained:
            fitting, note = None, f"{note}; set aside, because no turn that is left is a target"
        examples = () if fitting is None else tuple(show_thoughts(tokenizer, template, fitting, ids))
        yield FittedDialogue(examples, note)


def refusal(reasons: Sequence[str], count: int) -> str:
    """One message on all dialogues that the pivot's template does not show.

    Args:
        reasons: of the first ones.
        count: of all.
    """
    head = (
        f"the pivot's template does not show {count:,} dialogues; correct them, or set dialogues.on_bad: skip, which "
        "leaves them out:"
    )
    return reasons[0] if count == 1 else "\n  ".join([head, *listed(reasons, count)])


def show_thoughts(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | str, dialogue: Dialogue, ids: set[str]
) -> list[Dialogue]:
    """The dialogue, after one more for each turn whose reasoning is shown only while it is the last.

    Args:
        ids: of all dialogues; those of the new ones are added.
    """
    if not any(message.reasoning or "<think>" in message.content for message in dialogue.messages):
        return [dialogue]
    hidden = {
        number
        for number, name in render(tokenizer, template, dialogue).hidden
        if name == "reasoning" and dialogue.messages[number].is_trained
    }
    examples: list[Dialogue] = []
    done: set[int] = set()
    for last in sorted(hidden, reverse=True):
        if last in done:
            continue
        messages = dialogue.messages[: last + 1]
        try:
            rendered = render(tokenizer, template, replace(dialogue, messages=messages))
        except (DialogueError, ModelError):
            continue
        shown = {piece.message for piece in rendered.pieces if piece.name == "reasoning"} & (hidden - done)
        if last in shown:
            done |= shown
            new_id = f"{dialogue.id}, up to message {last + 1}"
            while new_id in ids:
                new_id += "'"
            ids.add(new_id)
            examples.append(replace(dialogue, id=new_id, messages=_trained_on(messages, shown)))
    others = {number for number, message in enumerate(dialogue.messages) if message.is_trained} - done
    whole = replace(dialogue, messages=_trained_on(dialogue.messages, others)) if done else dialogue
    return [*reversed(examples), whole] if whole.is_trained else examples[::-1]


def _trained_on(messages: Sequence[Message], targets: set[int]) -> tuple[Message, ...]:
    return tuple(
        replace(message, is_trained=number in targets) if message.role == "assistant" else message
        for number, message in enumerate(messages)
    )


def cut_dialogue(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | str, dialogue: Dialogue, max_tokens: int
) -> tuple[Dialogue | None, str]:
    """Keep the system message and as many whole exchanges from the start as fit into `max_tokens`.

    Returns:
        the dialogue, itself if all of it fits, None if not even the first exchange does; and what was done, in words
        (empty if nothing).
    """
    num_tokens = len(tokenize_dialogue(tokenizer, template, dialogue))
    if num_tokens <= max_tokens:
        return dialogue, ""
    fits, fits_not = 0, len(dialogue.exchange_ends)
    first_tokens = num_tokens
    while fits_not - fits > 1:
        middle = (fits + fits_not) // 2
        length = len(tokenize_dialogue(tokenizer, template, _first_exchanges(dialogue, middle)))
        if length <= max_tokens:
            fits = middle
        else:
            fits_not, first_tokens = middle, length
    if not fits:
        return None, (
            f"dialogue {dialogue.id!r}: set aside, because its first exchange has {first_tokens:,} tokens "
            f"and max_tokens is {max_tokens:,}"
        )
    kept = _first_exchanges(dialogue, fits)
    return kept, (
        f"dialogue {dialogue.id!r}: cut from {len(dialogue.messages)} to {len(kept.messages)} messages, because it has "
        f"{num_tokens:,} tokens and max_tokens is {max_tokens:,}"
    )


def _first_exchanges(dialogue: Dialogue, exchanges: int) -> Dialogue:
    return replace(dialogue, messages=dialogue.messages[: dialogue.exchange_ends[exchanges - 1]])
