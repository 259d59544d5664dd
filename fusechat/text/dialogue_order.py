"""Which messages may follow which, and what a whole dialogue needs; what can be cut where it has too much.

A system or developer message at most, at the head; then exchanges: a user's turn, the assistant's, and any number of
tool results each followed by an assistant's turn again. The assistant is last.
"""

import dataclasses

from ..errors import DialogueError
from .dialogue_records import Dialogue, Message

HEAD_ROLES = ("system", "developer")
"""Roles that stand at the head of a dialogue or nowhere."""


def check_dialogue(dialogue: Dialogue) -> None:
    """Raise on the first broken rule."""
    if not dialogue.messages:
        raise DialogueError("the dialogue is empty, expected at least a user and an assistant message; remove it")
    roles = [message.role for message in dialogue.messages]
    if "assistant" not in roles:
        raise DialogueError(f"found roles {', '.join(roles)}, expected an assistant turn; remove the dialogue")
    _check_order(dialogue.messages)
    if roles[-1] != "assistant":
        raise DialogueError(
            f"the last message is by {roles[-1]}, expected assistant; remove that message, or set on_bad: skip, which "
            "cuts it"
        )
    for number, message in enumerate(dialogue.messages, 1):
        if _is_blank(message):
            expected = "text, reasoning or tool calls" if message.role == "assistant" else "text"
            raise DialogueError(
                f"message {number} ({message.role}) is blank, expected {expected}; fill it, or set on_bad: skip"
            )
    _check_call_ids(dialogue.messages)
    if not dialogue.is_trained:
        raise DialogueError(
            "no assistant turn is a target, because each has weight 0 (or train: false); expected one that is: remove "
            "the dialogue, or set on_bad: skip"
        )


def _is_blank(message: Message) -> bool:
    """Whether a message says nothing; a tool may answer nothing."""
    said = message.content.strip() or message.reasoning.strip() or message.tool_calls
    return not said and message.role != "tool"


def _check_order(messages: tuple[Message, ...]) -> None:
    head = 1 if messages[0].role in HEAD_ROLES else 0
    expected: tuple[str, ...] = ("user",)
    for number, message in enumerate(messages[head:], head + 1):
        if message.role not in expected:
            raise DialogueError(
                f"message {number} is by {message.role}, expected {' or '.join(expected)} (a system or developer message "
                "only at the head; then user and assistant in turn, and results of tools after the assistant's turn that "
                "calls them); put the turns in order, or set on_bad: skip"
            )
        if message.role == "user":
            expected = ("assistant",)
        elif message.role == "tool":
            expected = ("assistant", "tool")
        else:
            # A call may also stand within the content, in the way of the model that wrote it.
            expected = ("tool",) if message.tool_calls else ("user", "tool")


def _check_call_ids(messages: tuple[Message, ...]) -> None:
    """Raise where a tool's message answers a call that is not there; calls without ids can be answered in any way."""
    calls: tuple[str, ...] | None = None
    for number, message in enumerate(messages, 1):
        if message.role == "assistant":
            ids = tuple(call.id for call in message.tool_calls if call.id)
            calls = ids if ids or not message.tool_calls else None
        elif message.tool_call_id and calls is not None and message.tool_call_id not in calls:
            expected = f"one of {', '.join(calls)}" if calls else "no id, because no call stands before it"
            raise DialogueError(
                f"message {number}: found tool_call_id {message.tool_call_id!r}, expected {expected}; correct it, or add "
                "the call to the assistant's turn before it"
            )


def cut_ends(dialogue: Dialogue) -> tuple[Dialogue, str]:
    """Cut what can be cut without touching the exchanges between; second value: what was cut, or an empty text."""
    messages, cut = list(dialogue.messages), []
    if messages and messages[0].role in HEAD_ROLES and not messages[0].content.strip():
        cut.append(f"a blank {messages[0].role} message")
        del messages[0]
    head = 1 if messages and messages[0].role in HEAD_ROLES else 0
    first_user = next((i for i in range(head, len(messages)) if messages[i].role not in ("assistant", "tool")), head)
    if first_user > head:
        by_tools = sum(message.role == "tool" for message in messages[head:first_user])
        results = f" and {by_tools} tool result(s)" if by_tools else ""
        cut.append(f"{first_user - head - by_tools} assistant turn(s){results} before the first user turn")
        del messages[head:first_user]
    if len(messages) > head + 1 and messages[-1].role == "user":
        del messages[-1]
        cut.append("a last user turn without an answer")
    last = next((i for i in range(len(messages), head, -1) if messages[i - 1].role != "tool"), head)
    if head < last < len(messages):
        cut.append(f"{len(messages) - last} last tool result(s) without an answer")
        del messages[last:]
    return dataclasses.replace(dialogue, messages=tuple(messages)), " and ".join(cut)
