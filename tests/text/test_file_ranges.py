"""Dialogue files in ranges: the rows, their places and their numbers are those of the whole file, however it is cut."""

import json
import random
from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk

from fusechat.errors import DialogueError
from fusechat.text import json_rows
from fusechat.text.dialogue_files import file_digest, file_ranges, read_range, read_rows
from fusechat.text.dialogues import read_dialogues


def rows(count: int, seed: int = 0) -> list[dict]:
    draw = random.Random(seed)
    texts = ["é" * draw.randrange(40) + "x" * draw.randrange(200) for _ in range(count)]
    return [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]} for text in texts]


def write(path: Path, form: str) -> Path:
    made = rows(60)
    if form == "lines":
        lines = [json.dumps(row, ensure_ascii=False) for row in made]
        lines[30] += "\r"
        lines[7:7] = ["", "   "]
        path.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())  # no line end behind the last
    elif form == "array":
        text = " ,\n\n ".join(json.dumps(row, ensure_ascii=False, indent=draw) for draw, row in enumerate(made))
        path.write_bytes(b"\xef\xbb\xbf\n [\n" + text.encode() + b" ]\n\n")
    elif form == "parquet":
        Dataset.from_list(made).to_parquet(path, batch_size=7)
    else:
        Dataset.from_list(made).save_to_disk(path)
    return path


@pytest.mark.parametrize("form", ["lines", "array", "parquet", "dataset"])
@pytest.mark.parametrize("size", [1, 500, 3000, 1 << 30])
def test_ranges_together_are_the_file_whatever_their_size(
    tmp_path: Path, form: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusechat.text.table_rows.SLICE_ROWS", min(size, 17))
    monkeypatch.setattr(json_rows, "READ_BYTES", 50)
    path = write(tmp_path / "d", form)
    parts = list(file_ranges(path, size))
    assert len(parts) > 1 or size == 1 << 30
    whole = list(read_rows(path))
    assert [row for part in parts for row in read_range(part)] == whole
    assert [row["messages"][1]["content"] for _, row in whole] == [row["messages"][1]["content"] for row in rows(60)]
    before = 0
    for part in parts:
        assert part.rows_before == before and part.num_rows == len(list(read_range(part)))
        before += part.num_rows
    for part in reversed(parts):  # none needs another
        assert list(read_range(part)) == whole[part.rows_before : part.rows_before + part.num_rows]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"a": 1} {"b": 2}]', r":1: broken JSON \(expected ',' or '\]'\)"),
        ('[{"a": 1},\n {"b": }]', r":2: broken JSON \(column 7"),
        ('[{"a": 1}', ":1: broken JSON"),
        ('[{"a": 1}]\n\nx', r":3: broken JSON \(text after the array's end\)"),
        ('[{"a": 1, "a": 2}]', "the key 'a' stands twice"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_broken_array_is_named_with_its_line(
    tmp_path: Path, text: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_rows, "READ_BYTES", 5)
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(DialogueError, match=says):
        list(read_rows(tmp_path / "d.json"))


def test_array_that_is_no_utf8_is_named_with_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "READ_BYTES", 3)
    (tmp_path / "d.json").write_bytes('[{"é": "'.encode() + b'\xff"}]')
    with pytest.raises(DialogueError, match="byte 0xff at byte offset 9 is not UTF-8"):
        list(read_rows(tmp_path / "d.json"))


def test_dataset_of_the_hub_is_read_by_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_dataset` takes a local folder for an id; what it gives is what it gives for one of the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "owner" / "chats").mkdir(parents=True)
    write(tmp_path / "owner" / "chats" / "train.jsonl", "lines")
    (tmp_path / "owner" / "chats" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(60)))
    read = list(read_dialogues("hub:owner/chats::train"))
    assert [one.messages[1].content for one in read] == [row["messages"][1]["content"] for row in rows(60)]
    assert file_digest("hub:owner/chats::train") == file_digest("hub:owner/chats::train")
    with pytest.raises(DialogueError, match=r"hub:owner/chats: no such dataset, or out of reach .*split"):
        list(read_rows("hub:owner/chats::test"))
    with pytest.raises(DialogueError, match="expected hub:OWNER/NAME or hub:OWNER/NAME/CONFIG"):
        list(read_rows("hub:chats"))
    assert isinstance(load_from_disk(str(write(tmp_path / "saved", "dataset"))), Dataset)
