"""Prompts of every form that questions and dialogues are read in, and rows that are none."""

import json
from pathlib import Path

import pytest

from fusechat.errors import DialogueError
from fusechat.text.dialogues import Dialogue, Message
from fusechat.text.prompts import Prompt, prompt_of, read_prompts, saved_prompts, write_prompts

TOOL = {"type": "function", "function": {"name": "look"}}
USER = {"role": "user", "content": "3+4?"}


def asked(*messages: tuple[str, str], kind: str = "") -> Dialogue:
    return Dialogue("d", tuple(Message(role, text) for role, text in messages), kind)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("3+4?", Prompt(asked(("user", "3+4?")))),
        ({"prompt": "3+4?", "reference": 7}, Prompt(asked(("user", "3+4?")), (), "7")),
        ({"prompt": "3+4?", "answer": "7", "kind": "sum"}, Prompt(asked(("user", "3+4?"), kind="sum"), (), "7")),
        ({"instruction": "Add.", "input": "3, 4", "output": "7"}, Prompt(asked(("user", "Add.\n\n3, 4")), (), "7")),
        ({"turns": ["3+4?", "And 5?"], "reference": ["7", "12"]}, Prompt(asked(("user", "3+4?")), ("And 5?",), "12")),
        ({"prompt": "3+4?", "system": "Be brief."}, Prompt(asked(("system", "Be brief."), ("user", "3+4?")))),
        ({"messages": [USER]}, Prompt(asked(("user", "3+4?")))),
        ({"messages": [USER, {"role": "assistant", "content": "7"}]}, Prompt(asked(("user", "3+4?")), (), "7")),
        ({"messages": [USER], "reference": "7"}, Prompt(asked(("user", "3+4?")), (), "7")),
        (
            {"conversations": [{"from": "human", "value": "3+4?"}, {"from": "gpt", "value": "7"}]},
            Prompt(asked(("user", "3+4?")), (), "7"),
        ),
    ],
)  # fmt: skip
def test_row_of_every_form_is_a_prompt(row: object, expected: Prompt) -> None:
    assert prompt_of(row, "d") == expected


def test_earlier_answers_are_context_and_tools_stay() -> None:
    messages = [USER, {"role": "assistant", "content": "7"}, {"role": "user", "content": "And 5?"}]
    prompt = prompt_of({"messages": messages, "tools": [TOOL], "id": 9}, "d")
    assert [message.is_trained for message in prompt.dialogue.messages] == [True, False, True]
    assert prompt.id == "9" and prompt.dialogue.template_tools == [TOOL]
    assert prompt_of({"prompt": "x", "tools": [TOOL]}, "d").dialogue.template_tools == [TOOL]


def test_answers_go_between_the_turns() -> None:
    prompt = prompt_of({"turns": ["a", "b"]}, "d")
    one, other = Message("assistant", "A"), Message("assistant", "B")
    assert [m.content for m in prompt.answered([]).messages] == ["a"]
    assert [m.content for m in prompt.answered([one]).messages] == ["a", "A", "b"]
    assert [m.content for m in prompt.answered([one, other]).messages] == ["a", "A", "b", "B"]


def test_prompts_are_read_in_order_named_by_file_and_saved_without_loss(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("first\n\nsecond\n")
    rows = [{"turns": ["a", "b"], "id": "mine", "reference": ["x", "y"]}, {"messages": [USER], "tools": [TOOL]}]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = read_prompts([tmp_path / "one.txt", tmp_path / "two.jsonl"])
    assert [prompt.id for prompt in prompts] == ["one-1", "one-2", "mine", "two-2"]
    write_prompts(tmp_path / "saved.jsonl", prompts)
    assert saved_prompts(tmp_path / "saved.jsonl") == prompts


@pytest.mark.parametrize("text", ["", "[]", "\n\n"])
def test_file_without_prompts_is_refused(tmp_path: Path, text: str) -> None:
    for name in ("p.jsonl", "p.txt"):
        (tmp_path / name).write_text(text)
        if name == "p.jsonl" or text != "[]":  # which is a line of text
            with pytest.raises(DialogueError, match="expected"):
                read_prompts([tmp_path / name])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [{"role": "system", "content": "Be brief."}]}, "expected user|assistant"),
        ({"messages": [{"role": "assistant", "content": "Hi."}]}, "no turn by a user"),
        ({"text": "hello"}, "expected a question with"),
        ({"prompt": " "}, "not blank"),
        ({"messages": [USER, USER]}, "is by user, expected assistant"),
        ({"prompt": "x", "answer": [1]}, "expected a text or a number"),
    ],
)
def test_row_that_is_no_prompt_is_refused_or_left_out(tmp_path: Path, row: dict, reason: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row) + '\n{"prompt": "fine"}\n')
    with pytest.raises(DialogueError, match=rf"p.jsonl:1: .*({reason})"):
        read_prompts([path])
    bad: list[tuple[str, str]] = []
    assert [one.dialogue.messages[-1].content for one in read_prompts([path], on_bad="skip", bad=bad)] == ["fine"]
    assert len(bad) == 1


def test_two_prompts_of_one_id_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}\n')
    with pytest.raises(DialogueError, match=r"the id 'x' stands at .*:1 too"):
        read_prompts([path])
