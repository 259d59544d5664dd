"""What is cut, left unread or left out of rows, and what tables and datasets give, is counted and named."""

from collections import Counter
from pathlib import Path

import pytest
from dialogue_rows import ANSWER, CALLING, LOOK, RESULT, TOOL, USER, calling, read, turns, whole, write

from fusechat.errors import DialogueError
from fusechat.text.dialogues import ToolCall, read_dialogues


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
