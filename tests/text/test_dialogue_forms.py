"""Today's forms of dialogues: every key that carries a value is read."""

import json
from collections import Counter
from pathlib import Path

import pytest
from dialogue_rows import (
    ANONYMOUS,
    ANSWER,
    CALL,
    CALLING,
    LOOK,
    RESULT,
    TOOL,
    USER,
    messages_of,
    read,
)

from fusechat.text.dialogues import Dialogue, Message


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_is_read_under_each_of_its_names(tmp_path: Path, key: str) -> None:
    assert messages_of(tmp_path, USER, {**ANSWER, key: "hm"})[1] == Message("assistant", "Sunny.", reasoning="hm")


def test_null_and_empty_values_count_as_absent_everywhere(tmp_path: Path) -> None:
    nothing = {"reasoning": None, "thinking": "", "tool_calls": [], "name": None, "refusal": None, "annotations": [],
               "audio": None, "weight": None, "tool_call_id": None, "images": []}  # fmt: skip
    row = {"id": "a", "messages": [{**USER, **nothing}, {**ANSWER, **nothing}], "conversations": None, "kind": None,
           "tools": None, "system": None, "template_arguments": None, "author": None, "images": None}  # fmt: skip
    left_out: dict[str, Counter[str]] = {}
    assert read(tmp_path, row, left_out=left_out) == Dialogue(
        "a", (Message("user", "Weather?"), Message("assistant", "Sunny."))
    )
    assert not left_out


@pytest.mark.parametrize(
    "calling",
    [
        CALLING,
        {**CALLING, "content": ""},
        {**CALLING, "tool_calls": json.dumps([CALL])},
        {**CALLING, "tool_calls": [{**CALL, "function": {"name": "look", "arguments": '{"city": "Ulm"}'}}]},
        {**CALLING, "tool_calls": [{"id": "c1", "name": "look", "arguments": {"city": "Ulm"}}]},
    ],
)
def test_tool_calls_are_read_with_arguments_as_an_object_or_its_text(tmp_path: Path, calling: dict) -> None:
    assert messages_of(tmp_path, USER, calling, RESULT, ANSWER) == (
        Message("user", "Weather?"),
        Message("assistant", "", tool_calls=(LOOK,)),
        Message("tool", "sun", tool_call_id="c1"),
        Message("assistant", "Sunny."),
    )


def test_old_function_call_and_function_role_are_read(tmp_path: Path) -> None:
    calling = {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": '{"city":"Ulm"}'}}
    messages = messages_of(tmp_path, USER, calling, {"role": "function", "name": "look", "content": "sun"}, ANSWER)
    assert messages[1:3] == (Message("assistant", "", tool_calls=(ANONYMOUS,)), Message("tool", "sun", name="look"))


def test_parallel_calls_several_results_and_several_assistant_turns_are_read(tmp_path: Path) -> None:
    second = {**CALL, "id": "c2"}
    calling = {**CALLING, "content": "Let me look.", "tool_calls": [CALL, second]}
    results = [RESULT, {**RESULT, "tool_call_id": "c2", "content": ""}]
    again = {**CALLING, "reasoning": "Once more."}
    messages = messages_of(tmp_path, USER, calling, *results, again, RESULT, ANSWER, USER, ANSWER)
    assert [m.role for m in messages] == [
        "user", "assistant", "tool", "tool", "assistant", "tool", "assistant", "user", "assistant",
    ]  # fmt: skip
    assert [len(m.tool_calls) for m in messages] == [0, 2, 0, 0, 1, 0, 0, 0, 0]


def test_dialogue_may_end_with_a_call(tmp_path: Path) -> None:
    assert messages_of(tmp_path, USER, CALLING)[-1].tool_calls == (LOOK,)


@pytest.mark.parametrize(
    ("value", "content", "count"),
    [
        ('{"name": "look", "arguments": {"city": "Ulm"}}', "", 1),
        ('[{"name": "look", "arguments": {"city": "Ulm"}}, {"name": "look", "arguments": "{\\"city\\": \\"Ulm\\"}"}]', "", 2),
        ('<think>\nhm\n</think>\n{"name": "look", "arguments": {"city": "Ulm"}}', "<think>\nhm\n</think>", 1),
        ({"name": "look", "arguments": {"city": "Ulm"}}, "", 1),
    ],
)  # fmt: skip
def test_sharegpt_function_call_and_observation_are_read(
    tmp_path: Path, value: object, content: str, count: int
) -> None:
    turns = [{"from": "human", "value": "Weather?"}, {"from": "function_call", "value": value},
             {"from": "observation", "value": "sun"}, {"from": "gpt", "value": "Sunny."}]  # fmt: skip
    messages = messages_of(tmp_path, *turns, column="conversations")
    assert messages[1] == Message("assistant", content, tool_calls=(ANONYMOUS,) * count)
    assert messages[2:] == (Message("tool", "sun"), Message("assistant", "Sunny."))


def test_tool_result_may_follow_a_call_that_stands_in_the_content(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": '<tool_call>{"name": "look"}</tool_call>'},
             {"from": "tool", "value": "sun"}, {"from": "gpt", "value": "Sunny."}]  # fmt: skip
    messages = messages_of(tmp_path, *turns, column="conversations")
    assert messages[1].content == '<tool_call>{"name": "look"}</tool_call>' and messages[2].role == "tool"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("tools", [TOOL]),
        ("tools", json.dumps([TOOL])),
        ("tools", [json.dumps(TOOL)]),
        ("tools", [TOOL["function"]]),
        ("functions", [TOOL["function"]]),
    ],
)
def test_tools_are_read_as_a_list_or_its_text_and_bare_functions_are_wrapped(
    tmp_path: Path, column: str, value: object
) -> None:
    dialogue = read(tmp_path, {"messages": [USER, ANSWER], column: value})
    assert dialogue.template_tools == [TOOL]


@pytest.mark.parametrize("column", ["system", "system_prompt"])
def test_system_column_becomes_the_first_message(tmp_path: Path, column: str) -> None:
    expected = Message("system", "Be brief.")
    assert messages_of(tmp_path, USER, ANSWER, **{column: "Be brief."})[0] == expected
    same = {"role": "system", "content": "Be brief."}
    assert messages_of(tmp_path, same, USER, ANSWER, **{column: "Be brief."})[0] == expected
    empty = {"role": "system", "content": ""}
    messages = messages_of(tmp_path, empty, USER, ANSWER, **{column: "Be brief."})
    assert messages[0] == expected and len(messages) == 3


def test_developer_message_stands_where_a_system_message_does(tmp_path: Path) -> None:
    assert messages_of(tmp_path, {"role": "developer", "content": "Be brief."}, USER, ANSWER)[0].role == "developer"


def test_content_of_text_parts_is_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Wea"}, {"type": "text", "text": "ther?", "image": None}]
    assert messages_of(tmp_path, {"role": "user", "content": parts}, ANSWER)[0] == Message("user", "Weather?")


@pytest.mark.parametrize(
    "flag", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"trainable": False}, {"loss": False}, {"learn": 0}]
)
def test_flag_makes_a_turn_context_and_no_target(tmp_path: Path, flag: dict) -> None:
    messages = messages_of(tmp_path, USER, {**ANSWER, **flag}, {**USER, "weight": 0}, {**ANSWER, "weight": 1})
    assert [message.is_trained for message in messages] == [True, False, True, True]


def test_template_arguments_and_author_are_read(tmp_path: Path) -> None:
    row = {"messages": [USER, ANSWER], "author": "gemma"}
    for column, value in (("template_arguments", {"date": "1 May"}), ("chat_template_kwargs", '{"date": "1 May"}')):
        dialogue = read(tmp_path, {**row, column: value})
        assert dialogue.template_keywords == {"date": "1 May"} and dialogue.author == "gemma"


def test_think_at_the_head_of_a_content_stays_there(tmp_path: Path) -> None:
    """Only the template of the model that reads it says whether this is reasoning."""
    content = "<think>\nhm\n</think>\n\nSunny."
    assert messages_of(tmp_path, USER, {**ANSWER, "content": content})[1] == Message("assistant", content)
