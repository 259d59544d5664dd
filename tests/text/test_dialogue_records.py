"""Dialogue records: what spans point into, what templates read, and that nothing is lost on the way through a file."""

import copy
import json
import pickle
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusechat.errors import DialogueError
from fusechat.text.dialogues import (
    Dialogue,
    Field,
    Message,
    ToolCall,
    dialogues_digest,
    read_dialogues,
    row_text,
    split_thought,
)
from fusechat.text.json_object import JsonObject

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=6)
said = texts.filter(str.strip)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
json_objects = st.dictionaries(texts, json_values, max_size=3)
users = st.builds(Message, role=st.just("user"), content=said, name=texts)
answers = st.builds(
    Message, role=st.just("assistant"), content=said, reasoning=texts, name=texts, is_trained=st.booleans()
)
calls = st.builds(
    Message,
    role=st.just("assistant"),
    content=texts,
    reasoning=texts,
    tool_calls=st.tuples(st.builds(ToolCall, name=said, arguments=json_objects, id=st.just("one") | st.just(""))),
    is_trained=st.booleans(),
)
results = st.builds(Message, role=st.just("tool"), content=texts, name=texts)


@st.composite
def whole_dialogues(draw: Any) -> Dialogue:
    """A dialogue that keeps every rule and has something in every field."""
    heads = st.builds(Message, role=st.sampled_from(["system", "developer"]), content=said)
    messages = draw(st.lists(heads, max_size=1))
    for _ in range(draw(st.integers(1, 2))):
        messages.append(draw(users))
        for call in draw(st.lists(calls, max_size=2)):
            answered = draw(st.sampled_from([call.tool_calls[0].id, ""]))
            messages += [call, Message("tool", draw(texts), tool_call_id=answered, name=draw(texts))]
        messages.append(draw(answers))
    messages.append(draw(users))
    messages.append(Message("assistant", draw(said)))
    names = st.builds(lambda name: {"type": "function", "function": {"name": name}}, said)
    arguments = st.dictionaries(st.sampled_from(["enable_thinking", "date", "ä"]), json_values)
    return Dialogue(
        draw(said), tuple(messages), draw(texts), tuple(draw(st.lists(names, max_size=2))), draw(arguments), draw(texts)
    )


@settings(max_examples=200, deadline=None)
@given(whole_dialogues())
def test_dialogue_written_as_a_row_is_read_back_equal(dialogue: Dialogue) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "d.jsonl"
        path.write_text(row_text(dialogue) + "\n", encoding="utf-8")
        (read,) = read_dialogues(path)
    assert read == dialogue and hash(read) == hash(dialogue)
    assert dialogues_digest([read]) == dialogues_digest([dialogue])
    assert row_text(read) == row_text(dialogue)  # the order of keys, and 1.0 beside 1, as well


@given(whole_dialogues())
def test_fields_and_their_offsets_cover_the_bytes(dialogue: Dialogue) -> None:
    data, offsets = dialogue.field_bytes, dialogue.field_offsets
    pieces = [data[a:b].decode() for a, b in zip(offsets, [*offsets[1:], len(data)], strict=True)]
    assert pieces == [field.text for field in dialogue.fields]
    assert [field for field in dialogue.fields if field.name == "content"] == [
        Field(number, "content", message.content) for number, message in enumerate(dialogue.messages)
    ]
    assert [field for field in dialogue.fields if field.name == "reasoning"] == [
        Field(number, "reasoning", m.reasoning) for number, m in enumerate(dialogue.messages) if m.reasoning
    ]


PLAIN = Dialogue("a", (Message("user", "u"), Message("assistant", "x")), "k")


@pytest.mark.parametrize(
    "other",
    [
        Dialogue("a", (Message("user", "u"), Message("assistant", "x", reasoning="r")), "k"),
        Dialogue("a", (Message("user", "u"), Message("assistant", "x", tool_calls=(ToolCall("f"),))), "k"),
        Dialogue("a", (Message("user", "u"), Message("assistant", "x", tool_calls=(ToolCall("f", {"a": 1}),))), "k"),
        Dialogue("a", (Message("user", "u"), Message("assistant", "x", tool_calls=(ToolCall("f", {}, "1"),))), "k"),
        Dialogue("a", (Message("user", "u", name="n"), Message("assistant", "x")), "k"),
        Dialogue("a", (Message("user", "u", tool_call_id="1"), Message("assistant", "x")), "k"),
        Dialogue("a", (Message("user", "u"), Message("assistant", "x", is_trained=False)), "k"),
        Dialogue("a", PLAIN.messages, "k", ({"type": "function"},)),
        Dialogue("a", PLAIN.messages, "k", (), {"enable_thinking": False}),
        Dialogue("a", PLAIN.messages, "k", (), {}, "gemma"),
    ],
)
def test_digest_and_equality_see_every_field(other: Dialogue) -> None:
    assert other != PLAIN and dialogues_digest([other]) != dialogues_digest([PLAIN])


def test_digest_of_a_plain_dialogue_is_what_it_was_before_there_were_other_fields() -> None:
    """So that tokens and rows that were made from plain dialogues are still theirs."""
    assert dialogues_digest([PLAIN]) == "40a6479f2dacf162ae166f0dc7e79f8081035562ff95a8f430e69b39068a8f1b"


def test_template_message_has_only_keys_with_a_value() -> None:
    assert Message("user", "u").to_template_message() == {"role": "user", "content": "u"}
    call = ToolCall("look", {"where": "here", "deep": None}, "c1")
    message = Message("assistant", "", "hm", (call,)).to_template_message()
    assert message == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"where": "here", "deep": None}}}
        ],
    }
    assert type(message["tool_calls"][0]["function"]["arguments"]) is dict  # templates ask whether it is a mapping
    json.dumps(message)
    answer = Message("tool", "3", tool_call_id="c1", name="look").to_template_message()
    assert answer == {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "look"}


def test_exchanges_end_before_the_next_users_turn() -> None:
    call = Message("assistant", "", tool_calls=(ToolCall("f"),))
    user, answer, result = Message("user", "u"), Message("assistant", "x"), Message("tool", "r")
    dialogue = Dialogue("a", (Message("system", "s"), user, call, result, result, answer, user, answer))
    assert dialogue.exchange_ends == (6, 8)
    assert PLAIN.exchange_ends == (2,)


def test_json_object_is_a_hashable_mapping_that_keeps_the_order_of_keys() -> None:
    made = {"b": [1, {"x": None}], "a": 1.0}
    one = JsonObject(made)
    assert one == made and dict(one) == made and list(one) == ["b", "a"] and len(one) == 2 and one["a"] == 1.0
    assert one != JsonObject({"a": 1.0, "b": [1, {"x": None}]}) and len({one, JsonObject(one)}) == 1
    one.value["b"].append(2)
    assert one == made
    assert pickle.loads(pickle.dumps(one)) == one == copy.deepcopy(one)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": float("nan")}, "a is nan, expected a number that JSON has"),
        ({"a": [float("inf")]}, "a[0] is inf"),
        ({"a": {"b": {1, 2}}}, "a.b is of type set"),
        ({1: 2}, "the object has the key 1, expected a text"),
        ({"a": "\ud83d"}, "a: lone surrogate '\\ud83d' at character 0"),
    ],
)
def test_json_object_refuses_what_json_does_not_have(value: dict, expected: str) -> None:
    with pytest.raises(DialogueError) as caught:
        JsonObject(value)
    assert expected in str(caught.value)


def test_json_object_nested_too_deeply_is_refused() -> None:
    deep: dict = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(DialogueError, match="nested too deeply"):
        JsonObject(deep)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("<think>\nhm\n</think>\n\nyes", ("hm", "yes")),
        (" <think>hm</think>yes", ("hm", "yes")),
        ("<think></think>yes", ("", "yes")),
        ("<think>a</think>b</think>c", ("a", "b</think>c")),
        ("<think>a", ("", "<think>a")),
        ("yes <think>a</think>", ("", "yes <think>a</think>")),
        ("yes", ("", "yes")),
    ],
)
def test_split_thought_parts_a_thought_at_the_head(content: str, expected: tuple[str, str]) -> None:
    assert split_thought(content) == expected
