"""Questions files of every form, what is refused, and answers files that read back."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from evaluation.judge.judge_prompts import single_prompt
from fusechat.errors import DialogueError
from fusechat.text.questions import (
    Question,
    answers_file,
    questions_digest,
    read_answers,
    read_questions,
    temperature_of,
    write_answers,
)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_prompts_come_from_text_and_from_json_of_several_keys(tmp_path: Path) -> None:
    text = write(tmp_path / "a.txt", "One?\n\n Two?\n")
    assert [question.turns for question in read_questions(text, "prompts")] == [("One?",), (" Two?",)]
    rows = [{"prompt": "p", "id": "x"}, {"instruction": "i"}, {"turns": ["a", "b"], "category": "math"}]
    lines = write(tmp_path / "b.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    found = read_questions(lines, "prompts")
    assert [(q.id, q.turns) for q in found] == [("x", ("p",)), ("2", ("i",)), ("3", ("a", "b"))]
    strings = write(tmp_path / "c.json", json.dumps(["s", "t"]))
    assert [question.turns for question in read_questions(strings, "prompts")] == [("s",), ("t",)]


@pytest.mark.parametrize(
    ("text", "form", "says"),
    [
        ('{"question_id": 1, "prompt": "p"}\n', "mt_bench", r":1: found .* expected a question with 'turns'"),
        ('{"turns": ["a"]}\n', "alpaca_eval", "expected a question with 'instruction'"),
        ('{"turns": ["a", " "]}\n', "mt_bench", "expected text that is not blank"),
        ('{"id": 1, "prompt": "p"}\n{"id": 1, "prompt": "q"}\n', "prompts", r":2: question '1' stands at .*:1 already"),
        ('{"prompt": "p"}\n{"prompt": \n', "prompts", r":2: broken JSON"),
        ("[]", "prompts", "holds no question"),
        ('{"id": [1], "prompt": "p"}\n', "prompts", r":1: found the id \[1\], expected a text or a whole number"),
        ('{"id": true, "prompt": "p"}\n', "prompts", ":1: found the id True"),
        ('{"prompt": "bad \\ud83d"}\n', "prompts", r":1: lone surrogate '\\ud83d' at character 4"),
        ('{"turns": ["a", "b\\udc00"]}\n', "mt_bench", ":1: lone surrogate"),
        ('{"instruction": "a", "input": "\\udfff"}\n', "alpaca_eval", ":1: lone surrogate"),
        ('{"id": "\\ud800", "prompt": "p"}\n', "prompts", ":1: lone surrogate"),
        ('{"turns": ["a"], "reference": ["\\ud800"]}\n', "mt_bench", ":1: lone surrogate"),
        ('{"instruction": "a", "input": ["x"]}\n', "alpaca_eval", "'input' holds .*, expected text"),
        ('{"turns": ["a", "b"], "input": "x"}\n', "prompts", "'input' beside several turns"),
        ('{"prompt": "a", "system": "Answer in French."}\n', "prompts", "found 'system', which a question has not"),
        ('{"prompt": "a", "instruction": "b"}\n', "prompts", "found both 'prompt' and 'instruction', and they differ"),
        ('{"turns": [{"role": "system", "content": "s"}]}\n', "mt_bench", "said by the user"),
        (
            '{"turns": ["a"], "reference": [{"a": 1}]}\n',
            "mt_bench",
            "'reference' holds .*, expected a text for each turn",
        ),
    ],
)
def test_row_that_is_no_question_is_refused_with_its_place(tmp_path: Path, text: str, form: str, says: str) -> None:
    with pytest.raises(DialogueError, match=says):
        read_questions(write(tmp_path / "q.jsonl", text), form)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "form", "turns"),
    [
        ({"instruction": "Translate", "input": "Good morning"}, "alpaca_eval", ("Translate\n\nGood morning",)),
        (
            {"instruction": "Translate", "input": "Good morning", "output": "x"},
            "prompts",
            ("Translate\n\nGood morning",),
        ),
        ({"instruction": "Say hi", "input": "  "}, "alpaca_eval", ("Say hi",)),
        ({"instruction": "Say hi", "input": None}, "prompts", ("Say hi",)),
        ({"instruction": "Sum up", "context": "A text."}, "prompts", ("Sum up\n\nA text.",)),
        ({"prompt": "Sum up", "input": "A text."}, "prompts", ("Sum up\n\nA text.",)),
        ({"prompt": ["a", "b"]}, "mt_bench", ("a", "b")),
        ({"turns": [{"content": "hi"}, {"role": "user", "content": "yo"}]}, "mt_bench", ("hi", "yo")),
        ({"turns": ["a", "b"], "prompt": "a"}, "prompts", ("a", "b")),
    ],
)
def test_all_that_is_asked_is_in_the_question(tmp_path: Path, row: dict, form: str, turns: tuple[str, ...]) -> None:
    (found,) = read_questions(write(tmp_path / "q.jsonl", json.dumps(row) + "\n"), form)  # type: ignore[arg-type]
    assert found.turns == turns


@pytest.mark.parametrize(
    ("reference", "read"),
    [
        ([None, None], ()), (None, ()), ([], ()), ("", ()), (float("nan"), ()), ([None, "7"], ("", "7")), ("7", ("7",)), (7, ("7",)),
        (["None"], ("None",)),
    ],
)  # fmt: skip
def test_null_reference_is_none(tmp_path: Path, reference: object, read: tuple[str, ...]) -> None:
    row = {"question_id": 101, "category": "math", "turns": ["a", "b"], "reference": reference}
    (found,) = read_questions(write(tmp_path / "q.jsonl", json.dumps(row) + "\n"), "mt_bench")
    assert found.reference == read
    asked = single_prompt(found.turns, ("x", "y"), found.reference)[1]["content"]
    assert ("Good answers" in asked) == bool(read) and "\n---\n" not in asked


def test_ids_are_read_from_every_key_that_question_files_have(tmp_path: Path) -> None:
    rows = [
        {"prompt_id": 81},
        {"uid": "x"},
        {"question_id": None, "id": "y"},
        {"question_id": 3, "uid": "z"},
        {"uid": None},
    ]
    text = "".join(json.dumps({"prompt": f"p{number}", **row}) + "\n" for number, row in enumerate(rows))
    found = read_questions(write(tmp_path / "q.jsonl", text), "prompts")
    assert [question.id for question in found] == ["81", "x", "y", "3", "5"]


def test_prompt_lines_end_at_newlines_alone(tmp_path: Path) -> None:
    path = tmp_path / "q.txt"
    path.write_bytes("\ufeffone\u2028still the same\x0cand this\r\ntwo\n".encode())
    assert [q.turns[0] for q in read_questions(path, "prompts")] == ["one\u2028still the same\x0cand this", "two"]


def test_parquet_of_questions_is_read_or_refused_with_the_columns_of_questions(tmp_path: Path) -> None:
    table = pa.table({"prompt_id": [1, 2], "prompt": [["a", "b"], ["c", "d"]], "reference": [["x", None], None]})
    parquet.write_table(table, tmp_path / "q.parquet")
    found = read_questions(tmp_path / "q.parquet", "mt_bench")
    assert [(q.id, q.turns, q.reference) for q in found] == [("1", ("a", "b"), ("x", "")), ("2", ("c", "d"), ())]
    with pytest.raises(DialogueError, match="found columns prompt, prompt_id, reference, expected 'instruction'"):
        read_questions(tmp_path / "q.parquet", "alpaca_eval")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(DialogueError, match="not readable as Parquet"):
        read_questions(tmp_path / "cut.parquet", "prompts")
    with pytest.raises(DialogueError, match="found a folder, expected a file of questions"):
        read_questions(tmp_path, "prompts")


def test_digest_follows_what_is_asked_and_not_the_reference() -> None:
    digest = questions_digest([Question("1", ("a",), reference=("x",))])
    assert digest == questions_digest([Question("1", ("a",))])
    assert digest != questions_digest([Question("1", ("b",))]) and digest != questions_digest([Question("2", ("a",))])


def test_temperature_is_the_given_one_or_fastchats_by_category() -> None:
    question = Question("1", ("a",), "writing")
    assert temperature_of(question, "mt_bench", None) == 0.7
    assert temperature_of(question, "mt_bench", 0.2) == 0.2
    assert temperature_of(question, "prompts", None) == 0.0


@pytest.mark.parametrize("form", ["prompts", "mt_bench", "alpaca_eval"])
def test_answers_read_back_in_the_order_of_the_questions(tmp_path: Path, form: str) -> None:
    questions = [Question(name, ("a", "b")) for name in ("81", "q", "007", "\u00b2")]
    answers = [["one <b>", "two"], ["drei\u2028\n", "vier"], ["five", "six"], ["seven", "eight"]]
    path = answers_file(tmp_path, "target.x", form)  # type: ignore[arg-type]
    write_answers(path, "target.x", form, questions, answers, {"seed": 1})  # type: ignore[arg-type]
    found = read_answers(path, form, questions)  # type: ignore[arg-type]
    assert found == ([[turns[0]] for turns in answers] if form == "alpaca_eval" else answers)
