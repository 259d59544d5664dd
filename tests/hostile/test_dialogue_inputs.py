"""Dialogue and question files that mean harm are read or refused: in time, in few words, and nothing else is read or written."""

import json
import os
import random
from itertools import islice
from pathlib import Path

import pytest
from hostile import documents, keys, nested, survives
from hypothesis import given, settings
from hypothesis import strategies as st

from fusechat.config import load_config
from fusechat.text.dialogues import read_dialogues
from fusechat.text.questions import read_questions

FORMS = ("prompts", "mt_bench", "alpaca_eval")
QUESTION, ANSWER = {"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Three."}
ROW = {"id": "a", "messages": [QUESTION, ANSWER]}
JSON_TEXTS = {
    "deep messages": '{"id": "a", "messages": ' + nested(900) + "}",
    "deep objects": nested(2000, '{"a":', "1}"),
    "deep tools": json.dumps(ROW)[:-1] + ', "tools": ' + nested(950) + "}",
    "deep template arguments": json.dumps(ROW)[:-1] + ', "template_arguments": {"a": ' + nested(900) + "}}",
    "deep lists": nested(5000),
    "open lists": "[" * 5000,
    "a number too long": '{"id": ' + "9" * 5000 + ', "messages": []}',
    "a long id": json.dumps({**ROW, "id": 10**4000}),
    "a long text as id": json.dumps({"id": "x" * 1_000_000, "messages": 3}),
    "a long key": json.dumps({"x" * 1_000_000: 1, "messages": 3}),
    "a long role": json.dumps({"id": "a", "messages": [{"role": "r" * 1_000_000, "content": ""}]}),
    "a long key of a turn": json.dumps({"id": "a", "messages": [{"role": "user", "k" * 1_000_000: "r"}]}),
    "a long column like a known one": json.dumps({**ROW, "message" * 20_000: 1}),
    "many keys": json.dumps({"id": "a", **{f"k{number}": 1 for number in range(8_000)}, "messages": 3}),
    "many keys, one twice": "{" + ",".join(f'"k{number}": 1' for number in range(40_000)) + ', "z": 1, "z": 2}',
    "infinite": '{"id": 1e999, "messages": []}',
    "an infinite weight": '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 1e999}]}',
    "NaN": '{"id": NaN, "messages": []}',
    "a key twice": '{"id": "a", "id": "b", "messages": []}',
    "nulls": '{"id": "\\u0000", "messages": [{"role": "user", "content": "\\u0000"}, {"role": "assistant", "content": "\\u0000"}]}',
    "half a pair as key": '{"\\ud800": 1, "messages": 3}',
    "half a pair as key twice": '{"\\ud800": 1, "\\ud800": 2}',
    "half a pair as role": '{"messages": [{"role": "\\udfff", "content": "x"}]}',
    "half a pair as key of a turn": '{"messages": [{"role": "user", "content": "x", "\\ud800": 3}]}',
    "half a pair as id": '{"id": "\\ud800x", "messages": 5}',
    "half a pair in an id that is none": '{"id": ["\\ud800"], "messages": 5}',
    "half a pair as type": '{"messages": [{"role": "user", "content": [{"type": "\\ud800"}]}]}',
    "half a pair as a tool": '{"messages": [], "tools": [{"name": "\\ud800"}]}',
    "half a pair as argument": '{"messages": [], "template_arguments": {"\\ud800": 1}}',
    "half a pair asked": '{"prompt": ["\\ud800"]}',
    "half a pair as question's id": '{"prompt": "x", "question_id": ["\\ud800"]}',
    "half a pair as category": '{"prompt": "x", "category": {"\\ud800": 1}}',
    "a deep reference": '{"prompt": "x", "reference": [{"a": ' + nested(900) + "}]}",
    "a long reference": '{"prompt": "x", "reference": ' + "9" * 4000 + "}",
    "a list of lists asked": '{"turns": [[["x"]]]}',
    "a role that is a list": '{"turns": [{"role": ["a"], "content": "x"}]}',
    "line ends": "\r\r\r",
    "one brace": "{",
    "a number": "3.5",
    "null": "null",
}  # fmt: skip


@pytest.mark.parametrize("name", JSON_TEXTS)
@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_json_that_means_harm_is_read_or_refused(tmp_path: Path, name: str, ending: str) -> None:
    file = tmp_path / f"rows.{ending}"
    for text in (JSON_TEXTS[name], f"[{JSON_TEXTS[name]}]"):
        file.write_text(text)
        survives(lambda: list(read_dialogues(file)))
        survives(lambda: list(read_dialogues(file, on_bad="skip", ignore_keys=["left"])))
        for form in FORMS:
            survives(lambda form=form: read_questions(file, form))


turns = st.lists(st.dictionaries(keys, documents, max_size=5), max_size=4)
rows = documents | st.fixed_dictionaries({}, optional={"id": documents, "messages": turns, "conversations": turns, "tools": documents,
                                                       "prompt": documents, "turns": documents, "instruction": documents})  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(row=rows)
def test_any_row_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, row: object) -> None:
    file = tmp_path_factory.getbasetemp() / "any_row.jsonl"
    file.write_text(json.dumps(row))
    survives(lambda: list(read_dialogues(file)))
    survives(lambda: list(read_dialogues(file, on_bad="skip")))
    survives(lambda: read_questions(file, "prompts"))


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=60), head=st.sampled_from([b"", b"{", b"[", b"PAR1", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b'{"id":'])
       )  # fmt: skip
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes, head: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any_bytes.jsonl"
    file.write_bytes(head + data)
    survives(lambda: list(read_dialogues(file)))
    survives(lambda: read_questions(file, "alpaca_eval"))


def test_paths_that_are_no_files_are_refused_at_once(tmp_path: Path) -> None:
    for ending in ("jsonl", "txt", "yaml"):
        os.mkfifo(tmp_path / f"pipe.{ending}")
        (tmp_path / f"endless.{ending}").symlink_to("/dev/zero")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "nowhere.jsonl").symlink_to(tmp_path / "not" / "there")
    names = [*tmp_path.iterdir(), tmp_path / "pipe.jsonl" / "x", tmp_path / "loop.jsonl" / "x"]
    odd = [
        "/dev/zero",
        "/dev/null",
        "/proc/self/mem",
        "a\0b",
        "~nosuchuser/x",
        "~",
        "",
        "::",
        "::train",
        "x" * 5000,
        "y" * 300,
    ]
    for path in [*map(str, names), *odd]:
        assert survives(lambda path=path: list(read_dialogues(path))), path
        assert survives(lambda path=path: load_config(path)), path
        for form in ("prompts", "alpaca_eval"):
            assert survives(lambda path=path, form=form: read_questions(path, form)), path


def test_changed_bytes_of_a_parquet_file_are_read_or_refused(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([ROW, {**ROW, "id": "b"}]), tmp_path / "whole.parquet")
    whole, draw = (tmp_path / "whole.parquet").read_bytes(), random.Random(1)
    file = tmp_path / "changed.parquet"
    for _ in range(100):
        changed = bytearray(whole)
        for _ in range(draw.randint(1, 6)):
            changed[draw.randrange(4, len(changed))] = draw.randrange(256)
        file.write_bytes(changed)
        survives(lambda: list(read_dialogues(file)))
        survives(lambda: read_questions(file, "prompts"))


def test_table_that_holds_a_long_text_once_for_all_rows_is_read_within_bounds(tmp_path: Path) -> None:
    import numpy as np
    import pyarrow
    from pyarrow import parquet

    def column(texts: list[str]) -> pyarrow.DictionaryArray:
        return pyarrow.DictionaryArray.from_arrays(
            np.tile(np.arange(len(texts), dtype=np.int32), rows * 2 // len(texts)), texts
        )

    rows, text = 4096, "x" * 2**20
    turns = pyarrow.StructArray.from_arrays(
        [column(["user", "assistant"]).cast(pyarrow.string()), column([text])], ["role", "content"]
    )
    messages = pyarrow.ListArray.from_arrays(pyarrow.array(np.arange(0, 2 * rows + 1, 2, dtype=np.int32)), turns)
    file = tmp_path / "bomb.parquet"
    parquet.write_table(pyarrow.table({"messages": messages}), file)
    assert file.stat().st_size < 200_000, "8 GiB of text in a small file"

    def read() -> None:
        dialogues = list(islice(read_dialogues(file), 3))
        assert [turn.content for turn in dialogues[2].messages] == [text, text]

    assert not survives(read)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("state.json", "{}"), ("state.json", "x"), ("state.json", "[]"), ("state.json", nested(5000)),
        ("state.json", '{"_data_files": [{"filename": "../secret.arrow"}]}'), ("state.json", '{"_data_files": [{"filename": 5}]}'),
        ("dataset_dict.json", "{}"), ("dataset_dict.json", '{"splits": 5}'), ("dataset_dict.json", '{"splits": ["../secret"]}'),
        ("dataset_dict.json", '{"splits": ["gone"]}'),
    ],
)  # fmt: skip
def test_dataset_that_means_harm_is_refused(tmp_path: Path, name: str, text: str) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / name).write_text(text)
    message = survives(lambda: list(read_dialogues(folder)))
    assert "not readable as a saved dataset" in message and ("outside its folder" in message or "secret" not in text)
