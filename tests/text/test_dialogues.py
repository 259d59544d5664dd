"""Dialogue files: every accepted form, and what is said about every broken one."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusechat.errors import DialogueError
from fusechat.text.dialogues import Dialogue, Message, dialogues_digest, read_dialogues

QUESTION = {"role": "user", "content": "How many?"}
ANSWER = {"role": "assistant", "content": "Three, 三."}
ROW = {"id": "a", "kind": "sums", "messages": [QUESTION, ANSWER]}
DIALOGUE = Dialogue("a", (Message("user", "How many?"), Message("assistant", "Three, 三.")), "sums")
SHAREGPT = {
    "id": "s",
    "conversations": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "Three, 三."}],
}


def row_with(**changes: object) -> dict:
    return {**ROW, **changes}


def row_of(*turns: str) -> dict:
    """A row from "user: text" turns."""
    return {"id": "a", "messages": [dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in turns]}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def refusal(path: Path | str) -> str:
    with pytest.raises(DialogueError) as caught:
        list(read_dialogues(path))
    return str(caught.value)


def test_read_own_form_jsonl_gives_dialogues(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", ROW, {"messages": [QUESTION, ANSWER]}, row_with(id=7, kind=None))
    first, second, third = read_dialogues(path)
    assert first == DIALOGUE
    assert (second.id, second.kind, second.messages) == ("d-2", "", DIALOGUE.messages)
    assert (third.id, third.kind) == ("7", "")


def test_read_jsonl_with_bom_blank_lines_and_crlf_gives_dialogues(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\r\n\r\n  \n" + json.dumps(row_with(id="b")).encode()
    )
    assert [dialogue.id for dialogue in read_dialogues(path)] == ["a", "b"]


@pytest.mark.parametrize("indent", [None, 2])
def test_read_sharegpt_array_gives_our_roles(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps([SHAREGPT, row_with(id="b")], indent=indent), encoding="utf-8")
    first, second = read_dialogues(path)
    assert (first.id, first.messages) == ("s", DIALOGUE.messages)
    assert (second.id, second.messages) == ("b", DIALOGUE.messages)


def test_read_sharegpt_jsonl_with_system_turn_gives_our_roles(tmp_path: Path) -> None:
    turns = [{"from": "system", "value": "Be brief."}, *SHAREGPT["conversations"]]
    (dialogue,) = read_dialogues(write(tmp_path / "s.jsonl", {"id": "s", "conversations": turns}))
    assert [message.role for message in dialogue.messages] == ["system", "user", "assistant"]


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_read_parquet_gives_dialogues(tmp_path: Path, column: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    turns = ROW["messages"] if column == "messages" else SHAREGPT["conversations"]
    table = pyarrow.Table.from_pylist([{"id": "a", "kind": "sums", column: turns, "score": 0.5}])
    parquet.write_table(table, tmp_path / "d.parquet")
    assert list(read_dialogues(tmp_path / "d.parquet")) == [DIALOGUE]


def test_read_saved_dataset_with_splits_needs_the_split(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([ROW])
    rows.save_to_disk(str(tmp_path / "plain"))
    DatasetDict({"train": rows, "test": Dataset.from_list([row_with(id="t")])}).save_to_disk(str(tmp_path / "both"))
    DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "one"))
    assert list(read_dialogues(tmp_path / "plain")) == [DIALOGUE]
    assert list(read_dialogues(tmp_path / "one")) == [DIALOGUE]
    assert [dialogue.id for dialogue in read_dialogues(f"{tmp_path}/both::test")] == ["t"]
    assert f"{tmp_path}/both::train" in refusal(tmp_path / "both")
    assert "'::train'" in refusal(f"{tmp_path}/plain::train")


def test_read_several_files_keeps_order_and_refuses_shared_ids(tmp_path: Path) -> None:
    first, second = write(tmp_path / "1.jsonl", ROW), write(tmp_path / "2.jsonl", row_with(id="b"))
    assert [dialogue.id for dialogue in read_dialogues([second, first])] == ["b", "a"]
    message = refusal([first, write(tmp_path / "3.jsonl", row_with(id="b"), ROW)])
    assert f"{tmp_path}/3.jsonl:2 (dialogue 'a')" in message and f"{tmp_path}/1.jsonl:1" in message


def test_read_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "dialogues_train.jsonl", ROW)
    assert f"did you mean {tmp_path}/dialogues_train.jsonl?" in refusal(tmp_path / "dialogue_train.jsonl")
    assert "no such file" in refusal(tmp_path / "no" / "such" / "folder.jsonl")


def test_read_file_with_split_is_refused(tmp_path: Path) -> None:
    assert "drop '::train'" in refusal(f"{write(tmp_path / 'd.jsonl', ROW)}::train")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "an empty file"),
        (b"\n \n", "an empty file"),
        (b"\x1f\x8b\x08\x00", "unpack it"),
        (b"id,messages\n", "expected JSON lines"),
    ],
)
def test_read_unknown_format_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "d.csv").write_bytes(content)
    assert expected in refusal(tmp_path / "d.csv")


def test_read_folder_that_is_no_dataset_is_refused(tmp_path: Path) -> None:
    assert "save_to_disk" in refusal(tmp_path)


def test_read_truncated_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.parquet").write_bytes(b"PAR1 and no more")
    assert "not readable as Parquet" in refusal(tmp_path / "d.parquet")


def test_read_parquet_without_dialogues_names_its_columns(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["a"], "label": [1]}), tmp_path / "d.parquet")
    assert "found columns label, text" in refusal(tmp_path / "d.parquet")


def test_read_broken_line_names_line_and_column(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", ROW)
    with path.open("a") as file:
        file.write('{"id": "b", "messages": [\n')
    message = refusal(path)
    assert f"{path}:2: broken JSON (column 26" in message and "repair or remove the line" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"messages": []}\n {"a": 1}]', "d.json:2: broken JSON (expected ',' or ']')"),
        ('[\n{"id": "a" "b"}]', "d.json:2: broken JSON"),
        ("[\n\n{", "d.json:3: broken JSON"),
        ("[" * 100_000, "nested too deeply"),
        (json.dumps([ROW]) + " {}", "text after the array's end"),
    ],
)
def test_read_broken_array_names_the_line(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(DialogueError, match="broken JSON") as caught:
        list(read_dialogues(tmp_path / "d.json", on_bad="skip"))
    assert expected in str(caught.value)


def test_read_invalid_utf8_names_line_and_byte(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", ROW)
    start = path.stat().st_size
    with path.open("ab") as file:
        file.write(b'{"id": "b\xff"}\n')
    assert f"{path}:2: byte 0xff at byte offset {start + 9}" in refusal(path)
    (tmp_path / "d.json").write_bytes(b'\xef\xbb\xbf[{"id": "b\xff"}]')
    assert "byte 0xff at byte offset 13" in refusal(tmp_path / "d.json")


def test_read_lone_surrogate_names_the_message(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(row_of("user: x", "assistant: half \ud83d of an emoji")))
    message = refusal(path)
    assert "message 2: content: lone surrogate '\\ud83d' at character 5" in message
    message.encode()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([1], "a value of type list"),
        (row_with(id=""), "found id ''"),
        (row_with(id=True), "found id True"),
        (row_with(id=[1]), "found id [1]"),
        (row_with(id="\ud800"), "id: lone surrogate"),
        (row_with(kind=3), "kind: found a value of type int, expected a text"),
        ({"id": "a", "text": "x"}, "found nothing under 'messages' (keys: id, text)"),
        (row_with(messages="x"), "a value of type str"),
        (row_with(messages=[]), "the dialogue is empty"),
        (row_with(messages=["x"]), "message 1: found a value of type str"),
        (row_with(messages=[{"role": "user", "text": "x"}]), "message 1: found the key 'text' with 'x'"),
        (row_with(messages=[QUESTION, {"role": "bot", "content": "x"}]), "message 2: found role 'bot'"),
        (
            row_with(messages=[QUESTION, {"role": "assistant", "content": ["x"]}]),
            "message 2: content part 1: found a value of type str",
        ),
        (row_with(messages=[QUESTION, {"role": "assistant", "content": None}]), "message 2 (assistant) is blank"),
        (row_of("user: x"), "expected an assistant turn"),
        (row_of("assistant: x", "user: y", "assistant: z"), "message 1 is by assistant, expected user"),
        (row_of("user: x", "user: y", "assistant: z"), "message 2 is by user, expected assistant"),
        (row_of("system: s", "assistant: z"), "message 2 is by assistant, expected user"),
        (row_of("user: x", "assistant: y", "system: s"), "message 3 is by system, expected user"),
        (row_of("user: x", "assistant: y", "user: z"), "the last message is by user"),
        (row_of("user:  \n", "assistant: y"), "message 1 (user) is blank"),
    ],
)
def test_read_broken_dialogue_is_refused_or_skipped(tmp_path: Path, row: object, expected: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(map(json.dumps, [row_with(id="good"), row])))
    message = refusal(path)
    assert message.startswith(f"{path}:2") and expected in message
    bad: list[tuple[str, str]] = []
    kept = list(read_dialogues(path, on_bad="skip", bad=bad))
    assert kept[0].id == "good" and len(bad) == 1 and bad[0][0].startswith(f"{path}:2")
    assert len(kept) == (2 if "cut" in bad[0][1].split(": ")[-1] else 1)


@pytest.mark.parametrize(
    ("row", "roles", "note"),
    [
        (row_of("assistant: x", "user: y", "assistant: z"), "user assistant", "1 assistant turn(s) before"),
        (row_of("user: x", "assistant: y", "user: z"), "user assistant", "a last user turn"),
        (row_of("system:  ", "user: x", "assistant: y"), "user assistant", "a blank system message"),
        (
            row_of("system: s", "assistant: x", "user: y", "assistant: z", "user: u"),
            "system user assistant",
            "1 assistant turn(s) before the first user turn and a last user turn",
        ),
    ],
)
def test_read_skip_cuts_ends_that_can_be_cut(tmp_path: Path, row: dict, roles: str, note: str) -> None:
    bad: list[tuple[str, str]] = []
    (dialogue,) = read_dialogues(write(tmp_path / "d.jsonl", row), on_bad="skip", bad=bad)
    assert " ".join(message.role for message in dialogue.messages) == roles
    assert len(bad) == 1 and note in bad[0][1] and "the rest kept" in bad[0][1]


def test_read_skip_goes_on_after_broken_lines(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"{broken\n" + b'{"id": "\xff"}\n' + json.dumps(ROW).encode() + b"\n" + json.dumps(ROW).encode())
    bad: list[tuple[str, str]] = []
    assert list(read_dialogues(path, on_bad="skip", bad=bad)) == [DIALOGUE]
    assert [place for place, _ in bad] == [f"{path}:1", f"{path}:2", f"{path}:4 (dialogue 'a')"]


def test_field_offsets_point_at_each_message() -> None:
    data, offsets = DIALOGUE.field_bytes, DIALOGUE.field_offsets
    assert data.decode() == "How many?Three, 三." and offsets == (0, 9)
    assert data[offsets[1] :].decode() == "Three, 三."


texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)
dialogue_lists = st.lists(
    st.builds(
        Dialogue,
        id=texts,
        messages=st.lists(st.builds(Message, role=st.sampled_from(["user", "assistant"]), content=texts)).map(tuple),
        kind=st.sampled_from(["", "a", "b"]),
    ),
    max_size=4,
)


@given(dialogue_lists, dialogue_lists)
def test_digest_is_equal_only_for_equal_lists(one: list[Dialogue], other: list[Dialogue]) -> None:
    assert (dialogues_digest(one) == dialogues_digest(other)) == (one == other)


def test_digest_tells_apart_what_joined_text_does_not() -> None:
    def dialogue(dialogue_id: str, *contents: str) -> Dialogue:
        return Dialogue(dialogue_id, tuple(Message("user", content) for content in contents))

    lists = [
        [dialogue("a", "bc")],
        [dialogue("ab", "c")],
        [dialogue("a", "b", "c")],
        [dialogue("a", "b"), dialogue("c")],
    ]
    assert len({dialogues_digest(one) for one in lists}) == len(lists)


def test_dialogues_written_as_jsonl_are_read_back(tmp_path: Path) -> None:
    odd = "\u2028 line\r\nends\x85, \x00, e\u0301, \U0001f468\u200d\U0001f469, <|im_end|>"
    path = write(tmp_path / "d.jsonl", row_of(f"user: {odd}", f"assistant: {odd}"))
    (dialogue,) = read_dialogues(path)
    assert [message.content for message in dialogue.messages] == [odd, odd]
