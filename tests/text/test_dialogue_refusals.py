"""Rows that break the rules are refused, or skipped, with file, line, field and a remedy; no value is lost without a word."""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from dialogue_rows import (
    ANSWER,
    CALL,
    CALLING,
    RESULT,
    TOOL,
    USER,
    calling,
    turns,
    whole,
    write,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fusechat.errors import DialogueError
from fusechat.text.dialogue_rows import COLUMNS
from fusechat.text.dialogues import read_dialogues, row_text
from fusechat.text.message_reading import KEYS as MESSAGE_KEYS

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
