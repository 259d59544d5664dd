"""Questions files of every form, what is refused, and answers files that read back."""

import json
from pathlib import Path

import pytest

from fusechat.errors import DialogueError
from fusechat.text.questions import Question, answers_file, read_answers, read_questions, temperature_of, write_answers


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
    ],
)
def test_row_that_is_no_question_is_refused_with_its_place(tmp_path: Path, text: str, form: str, says: str) -> None:
    with pytest.raises(DialogueError, match=says):
        read_questions(write(tmp_path / "q.jsonl", text), form)  # type: ignore[arg-type]


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
