"""Today's forms of dialogues: every key that carries a value is read or refused with file, line, field and a remedy."""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusechat.errors import DialogueError
from fusechat.text.dialogues import COLUMNS, Dialogue, Message, ToolCall, read_dialogues, row_text
from fusechat.text.message_reading import KEYS as MESSAGE_KEYS

USER, ANSWER = {"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "Sunny."}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"city": "Ulm"}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "sun"}
LOOK = ToolCall("look", {"city": "Ulm"}, "c1")
ANONYMOUS = ToolCall("look", {"city": "Ulm"})
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def write(folder: Path, *rows: object) -> Path:
    path = folder / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(folder: Path, row: object, **options: Any) -> Dialogue:
    (dialogue,) = read_dialogues(write(folder, row), **options)
    return dialogue


def messages_of(folder: Path, *turns: dict, column: str = "messages", **columns: object) -> tuple[Message, ...]:
    return read(folder, {"id": "a", column: list(turns), **columns}).messages


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


def turns(*more: dict) -> dict:
    return {"id": "a", "messages": [USER, *more]}


def calling(**changes: object) -> dict:
    """The row whose one call has other keys."""
    return turns({**CALLING, "tool_calls": [{**CALL, **changes}]}, RESULT, ANSWER)


def whole(**columns: object) -> dict:
    return {"id": "a", "messages": [USER, ANSWER], **columns}


BAD_ROWS: list[tuple[dict, str]] = [
    (turns({**ANSWER, "reasoning": 3}), "message 2: reasoning: found a value of type int, expected a text"),
    (turns({**ANSWER, "reasoning": "\ud83d"}), "message 2: reasoning: lone surrogate"),
    (turns({**ANSWER, "reasoning": "a", "thinking": "b"}), "message 2: found 'reasoning' and 'thinking' with different"),
    (turns({**ANSWER, "reasonning": "a"}), "message 2: found the key 'reasonning' with 'a', expected one of role"),
    (turns({**ANSWER, "reasonning": "a"}), "did you mean 'reasoning'? Else remove it, or name it under"),
    (turns({**ANSWER, "masked": False}), "message 2: found the key 'masked' with False"),
    (turns({**ANSWER, "refusal": "No."}), "message 2: found the key 'refusal'"),
    (turns({**ANSWER, "images": ["a.png"]}), "message 2: found 'images', expected text only: images, audio and video"),
    (turns({**ANSWER, "audio": {"id": "x"}}), "message 2: found 'audio', expected text only"),
    (turns({**ANSWER, "content": [{"type": "image_url", "image_url": {"url": "x"}}]}), "content part 1: found 'image_url'"),
    (turns({**ANSWER, "content": [{"type": "input_audio", "input_audio": {}}]}), "content part 1: found 'input_audio'"),
    (turns({**ANSWER, "content": [{"type": "thinking", "thinking": "x"}]}), "content part 1: found type 'thinking'"),
    (turns({**ANSWER, "content": [{"type": "text", "text": "x", "cache": 1}]}), "content part 1: found the key 'cache'"),
    (turns({**ANSWER, "content": {"a": 1}}), "message 2: content: found a value of type dict, expected a text"),
    (turns({**ANSWER, "value": "Rain."}), "message 2: found 'content' and 'value' with different values"),
    (turns({**ANSWER, "name": 3}), "message 2: name: found a value of type int"),
    (turns({"content": "x"}), "message 2: found no role (keys: content), expected one of system"),
    (turns({**ANSWER, "weight": 0.5}), "message 2: found weight 0.5, expected 0 or 1 (false or true)"),
    (turns({**ANSWER, "weight": -1}), "message 2: found weight -1, expected 0 or 1"),
    (turns({**ANSWER, "train": "no"}), "message 2: found train 'no', expected 0 or 1"),
    (turns({**ANSWER, "weight": 0, "train": True}), "message 2: found {'train': True, 'weight': 0}, expected flags that"),
    ({"id": "a", "messages": [{**USER, "weight": 1}, ANSWER]}, "message 1: found weight 1 on a message by user"),
    (turns({**ANSWER, "weight": 0}), "no assistant turn is a target"),
    ({"id": "a", "messages": [{**USER, "reasoning": "x"}, ANSWER]}, "message 1: found reasoning on a message by user"),
    ({"id": "a", "messages": [{**USER, "tool_calls": [CALL]}, ANSWER]}, "message 1: found tool_calls on a message by user"),
    (turns({**ANSWER, "tool_call_id": "c1"}), "message 2: found tool_call_id on a message by assistant"),
    (turns({**CALLING, "tool_calls": "[1"}), "message 2: tool_calls: found the text '[1', which is not JSON (line 1 column"),
    (turns({**CALLING, "tool_calls": {"a": 1}}), "message 2: tool_calls: found a value of type dict, expected a list of"),
    (turns({**CALLING, "tool_calls": [3]}), "message 2: tool_calls[0]: found a value of type int, expected an object"),
    (turns({**CALLING, "tool_calls": [{"id": "x"}]}), "message 2: tool_calls[0]: found no name, expected the name"),
    (calling(type="retrieval"), "tool_calls[0]: found type 'retrieval', expected 'function'"),
    (calling(index=1), "tool_calls[0]: found the key 'index' with 1, expected one of id, type, function"),
    (calling(id=3), "tool_calls[0].id: found a value of type int, expected a text"),
    (calling(function="look"), "tool_calls[0].function: found a value of type str, expected an object with 'name'"),
    (calling(function={"name": " "}), "tool_calls[0].function: found no name"),
    (calling(function={"name": "f", "argument": {"a": 1}}), "tool_calls[0].function: found the key 'argument'"),
    (calling(function={"name": "f", "arguments": "{a"}), "function.arguments: found the text '{a', which is not JSON"),
    (calling(function={"name": "f", "arguments": "[1]"}), "function.arguments: found a value of type list, expected a JSON"),
    (calling(function={"name": "f", "arguments": ""}), "function.arguments: found the text '', which is not JSON"),
    (calling(function={"name": "f", "arguments": '{"a": 1, "a": 2}'}), "the key 'a' stands twice in an object"),
    (calling(function={"name": "f", "arguments": '{"a": NaN}'}), "NaN is no JSON number"),
    (calling(function={"name": "f", "arguments": {"a": float("nan")}}), "function.arguments: a is nan, expected a number"),
    (calling(function={"name": "f", "arguments": 3}), "function.arguments: found a value of type int, expected a JSON"),
    (turns({"role": "function_call", "content": "look(Ulm)"}), "message 2: found the text 'look(Ulm)', which is not JSON"),
    (turns({"role": "function_call", "content": "[]"}), "message 2: found no call in a turn by function_call"),
    (turns(CALLING, ANSWER), "message 3 is by assistant, expected tool"),
    (turns(CALLING, USER, ANSWER), "message 3 is by user, expected tool"),
    ({"id": "a", "messages": [RESULT, USER, ANSWER]}, "message 1 is by tool, expected user"),
    (turns(RESULT, ANSWER), "message 2 is by tool, expected assistant"),
    (turns(CALLING, RESULT, USER, ANSWER), "message 4 is by user, expected assistant or tool"),
    (turns(CALLING, RESULT), "the last message is by tool, expected assistant"),
    (turns(ANSWER, {"role": "developer", "content": "x"}), "message 3 is by developer, expected user or tool"),
    (turns(CALLING, {**RESULT, "tool_call_id": "c9"}, ANSWER), "message 3: found tool_call_id 'c9', expected one of c1"),
    (turns(ANSWER, RESULT, ANSWER), "message 3: found tool_call_id 'c1', expected no id, because no call stands before"),
    (turns({"role": "assistant", "content": " ", "reasoning": "\n"}), "message 2 (assistant) is blank, expected text, reas"),
    (whole(tools=3), "tools: found a value of type int, expected a list of tools"),
    (whole(tools="look"), "tools: found the text 'look', which is not JSON"),
    (whole(tools=[3]), "tools[0]: found 3, expected {"),
    (whole(tools=[{"type": "retrieval"}]), "tools[0]: found {'type': 'retrieval'}, expected {"),
    (whole(tools=[TOOL], functions=[{"name": "other"}]), "the row: found 'tools' and 'functions' with different values"),
    (whole(system=3), "system: found a value of type int, expected a text"),
    ({"id": "a", "messages": [{"role": "system", "content": "x"}, USER, ANSWER], "system": "y"}, "found a column 'system'"),
    (whole(template_arguments=[1]), "template_arguments: found a value of type list, expected a JSON object"),
    (whole(template_arguments={"tokenize": True}), "template_arguments: found 'tokenize', which FuseChat itself sets"),
    (whole(author=["x"]), "author: found a value of type list, expected a text"),
    (whole(images=["a.png"]), "found 'images', expected text only"),
    (whole(tool=[TOOL]), "found the column 'tool', expected 'tools'; rename it, or name it under dialogues.ignore_keys"),
    (whole(conversations=[USER, ANSWER]), "found 'messages' and 'conversations', expected one of them"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "expected"), BAD_ROWS, ids=[expected[:60] for _, expected in BAD_ROWS])
def test_bad_field_is_refused_by_place_or_skipped_and_named(tmp_path: Path, row: dict, expected: str) -> None:
    path = write(tmp_path, whole(id="good"), row)
    with pytest.raises(DialogueError) as caught:
        list(read_dialogues(path))
    message = str(caught.value)
    assert message.startswith(f"{path}:2 (dialogue 'a'): ") and expected in message
    assert "; " in message.removeprefix(str(path))  # what to do
    bad: list[tuple[str, str]] = []
    kept = list(read_dialogues(path, on_bad="skip", bad=bad))
    assert kept[0].id == "good" and [place for place, _ in bad] == [f"{path}:2 (dialogue 'a')"]


RICH = {
    "id": "a", "kind": "k", "system": "s", "author": "g", "template_arguments": {"x": {"y": [1]}}, "source": {"z": 1},
    "tools": [TOOL],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "t"}], "name": "n", "weight": 0},
        {**CALLING, "reasoning": "r"}, {**RESULT, "name": "look"}, {**ANSWER, "train": True, "thinking": "q"},
    ],
}  # fmt: skip
SENTINEL = "zq17"
values = st.sampled_from([SENTINEL, [SENTINEL], {"a": SENTINEL}, {SENTINEL: 1}, [{"type": "text", "text": SENTINEL}]])
keys = st.sampled_from([*MESSAGE_KEYS, *COLUMNS, "text", "function", "arguments", "type", "id", "index", "masked"])


def containers(value: object) -> list[Any]:
    """All objects and lists in a row, itself too."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return ([value] if isinstance(value, (dict, list)) else []) + [one for item in inner for one in containers(item)]


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_what_is_put_anywhere_into_a_row_is_read_or_refused_or_named(data: st.DataObject) -> None:
    row = json.loads(json.dumps(RICH))
    place, value = data.draw(st.sampled_from(containers(row))), data.draw(values)
    if isinstance(place, list):
        place.insert(data.draw(st.integers(0, len(place))), value)
    else:
        place[data.draw(st.sampled_from(sorted(place)) | keys)] = value
    bad: list[tuple[str, str]] = []
    left_out: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        kept = list(read_dialogues(write(Path(folder), row), on_bad="skip", bad=bad, left_out=left_out))
    named = {column for columns in left_out.values() for column in columns}
    lost = [key for key in row if SENTINEL in json.dumps({key: row[key]}) and key not in named]
    assert bad or not lost or SENTINEL in row_text(kept[0])


def test_values_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    """Whether the file's JSON, a text of JSON within it, or only what is done with it goes too deep."""
    deep: Any = "x"
    for _ in range(700):
        deep = [deep]
    for row in (whole(tools=deep), whole(tools="[" * 100_000), turns({**ANSWER, "masked": deep})):
        with pytest.raises(DialogueError, match=r"d\.jsonl:1"):
            list(read_dialogues(write(tmp_path, row), ignore_keys=["source"]))
    (tmp_path / "d.jsonl").write_text('{"messages": ' + "[" * 100_000 + "\n")
    with pytest.raises(DialogueError, match="nested too deeply"):
        list(read_dialogues(tmp_path / "d.jsonl"))


def test_refusal_names_all_offenders_in_one_message(tmp_path: Path) -> None:
    path = write(tmp_path, *[whole(id=n, tools=3) if n % 2 else whole(id=n) for n in range(50)])
    with pytest.raises(DialogueError) as caught:
        list(read_dialogues(path))
    lines = str(caught.value).split("\n")
    assert lines[0].startswith("25 dialogues break the rules") and "on_bad: skip" in lines[0]
    assert lines[1].strip().startswith(f"{path}:2 (dialogue 1): tools: ") and lines[-1].strip() == "and 15 more"
    assert len(lines) == 12


def test_key_that_stands_twice_in_a_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"id": "a", "messages": [], "messages": []}\n')
    with pytest.raises(DialogueError, match="'messages' stands twice"):
        list(read_dialogues(path))


@pytest.mark.parametrize(
    ("row", "roles", "note"),
    [
        (turns(ANSWER, USER, CALLING, RESULT), "user assistant user assistant", "1 last tool result(s) without an"),
        (
            turns(CALLING, RESULT, USER),
            "user assistant",
            "a last user turn without an answer and 1 last tool result(s)",
        ),
        (
            {"messages": [CALLING, RESULT, ANSWER, USER, ANSWER]},
            "user assistant",
            "2 assistant turn(s) and 1 tool result",
        ),
        (
            {"messages": [{"role": "developer", "content": " "}, USER, ANSWER]},
            "user assistant",
            "a blank developer message",
        ),
    ],
)
def test_skip_cuts_ends_of_dialogues_with_tools(tmp_path: Path, row: dict, roles: str, note: str) -> None:
    bad: list[tuple[str, str]] = []
    dialogue = read(tmp_path, row, on_bad="skip", bad=bad)
    assert " ".join(message.role for message in dialogue.messages) == roles
    assert len(bad) == 1 and note in bad[0][1]


def test_columns_that_are_no_part_of_a_dialogue_are_counted_by_file(tmp_path: Path) -> None:
    rows = [whole(id=n, source="web", score=0, conversation_id="x" if n else None, idx=None) for n in range(3)]
    path, left_out = write(tmp_path, *rows), {}
    assert len(list(read_dialogues(path, left_out=left_out))) == 3
    assert left_out == {str(path): {"source": 3, "score": 3, "conversation_id": 2}}


def test_ignored_keys_are_left_unread_wherever_they_stand(tmp_path: Path) -> None:
    row = calling(index=0, function={"name": "look", "arguments": {"index": 4}})
    row["messages"][0] = {**USER, "masked": True}
    left_out: dict[str, Counter[str]] = {}
    dialogue = read(tmp_path, {**row, "source": "web"}, ignore_keys=["index", "masked", "source"], left_out=left_out)
    assert not left_out
    assert dialogue.messages[1].tool_calls == (ToolCall("look", {"index": 4}, "c1"),)


def test_table_gives_objects_without_the_keys_of_others_and_names_what_is_not_loaded(tmp_path: Path) -> None:
    """Arrow gives every object of a column the keys of all, with nulls; a call must not get arguments that it had not."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    other = {"role": "assistant", "tool_calls": [{"id": "c2", "function": {"name": "add", "arguments": {"a": 1}}}]}
    rows = [
        whole(id="one", tools=[TOOL], source="web"),
        {"id": "two", "messages": [USER, CALLING, RESULT, ANSWER], "source": "web"},
        {"id": "three", "messages": [USER, other]},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    left_out: dict[str, Counter[str]] = {}
    one, two, three = read_dialogues(tmp_path / "d.parquet", left_out=left_out)
    assert one.template_tools == [TOOL] and two.messages[1].tool_calls == (LOOK,)
    assert three.messages[1].tool_calls == (ToolCall("add", {"a": 1}, "c2"),)
    assert left_out == {f"{tmp_path}/d.parquet": {"source": 3}}


def test_table_with_pictures_or_a_misspelt_column_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for column, expected in (
        ("images", "found 'images'"),
        ("systems", "found the column 'systems', expected 'system'"),
    ):
        table = pyarrow.Table.from_pylist([{"messages": [USER, ANSWER], column: "x"}])
        parquet.write_table(table, tmp_path / "d.parquet")
        with pytest.raises(DialogueError, match=r"d\.parquet: row 1: ") as caught:
            list(read_dialogues(tmp_path / "d.parquet"))
        assert expected in str(caught.value)


def test_saved_dataset_with_tools_is_read(tmp_path: Path) -> None:
    from datasets import Dataset

    rows = [{"messages": [USER, CALLING, RESULT, ANSWER], "tools": [TOOL], "note": "x"}, whole(tools=None, note=None)]
    Dataset.from_list([{"id": str(n), **row} for n, row in enumerate(rows)]).save_to_disk(str(tmp_path / "saved"))
    first, second = read_dialogues(tmp_path / "saved")
    assert first.messages[1].tool_calls == (LOOK,) and first.template_tools == [TOOL] and second.tools == ()
