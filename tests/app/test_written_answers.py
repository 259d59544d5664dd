"""`fusechat inspect` on what writing leaves: a prompt with its reference, all its answers and the verdict on each."""

import json
from pathlib import Path

import pytest

from fusechat.app.inspection import show_artifact
from fusechat.app.written_answers import prompt_lines
from fusechat.errors import ArtifactError, ConfigError
from fusechat.storage import artifact
from fusechat.text.prompts import prompt_of

PROMPT = prompt_of({"turns": ["3+4?", "And 5?"], "system": "Be brief.", "reference": ["7", "12"], "id": "sum"}, "p")
CALL = {"type": "function", "function": {"name": "look", "arguments": {"city": "Ulm"}}}
ANSWERS = [
    {"writer": "a", "sample": 0, "messages": [{"role": "assistant", "content": "7", "reasoning": "3 and 4."}],
     "logprobs": {"b": -0.25}, "kept": True, "reason": "", "rule_score": -0.25},
    {"writer": "a", "sample": 1, "messages": [], "fault": "cut off at max_new_tokens", "shown": "Well, w", "kept": False,
     "reason": "cut off at max_new_tokens", "rule_score": 0.0},
    {"writer": "b", "sample": 0, "messages": [{"role": "assistant", "content": "", "tool_calls": [CALL]}], "kept": False,
     "reason": "not the reference", "rule_score": 0.0},
]  # fmt: skip


def test_prompt_is_shown_with_all_its_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = artifact.claim(tmp_path / "prompts", "prompts", settings={}, parents={}).finish({})
    claim = artifact.claim(tmp_path / "dialogues", "written", settings={}, parents={"prompts": prompts})
    with pytest.raises(ArtifactError, match="not written yet"):
        prompt_lines(claim.url, "written", 0)
    line = json.dumps({"prompt": PROMPT.to_row(), "answers": ANSWERS})
    (tmp_path / "dialogues" / "answers.jsonl").write_text(f"{line}\n{line}\n")
    claim.finish({"dialogues": 1})
    show_artifact(claim.url, dialogue=1, num_rows=1, verify=False)
    shown = capsys.readouterr().out
    for part in (
        "prompt 1: id 'sum'", "system: 'Be brief.'", "user: '3+4?'", "then user: 'And 5?'", "reference: '12'",
        "answer 0 of a: kept (b -0.250 nats per byte)", "reasoning: '3 and 4.'", "content: '7'",
        "answer 1 of a: refused, cut off at max_new_tokens", "'Well, w'", 'calls look({"city": "Ulm"})',
        "answer 0 of b: refused, not the reference",
    ):  # fmt: skip
        assert part in shown, shown
    for number in (2, -1):
        with pytest.raises(ConfigError, match=f"--dialogue {number}"):
            prompt_lines(claim.url, "written", number)


def test_writers_answers_and_prompts_are_shown_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claim = artifact.claim(tmp_path / "prompts", "prompts", settings={}, parents={})
    (tmp_path / "prompts" / "prompts.jsonl").write_text(json.dumps(PROMPT.to_row()) + "\n")
    prompts = claim.finish({})
    show_artifact(prompts.url, dialogue=0, num_rows=1, verify=False)
    assert "reference: '12'" in capsys.readouterr().out
    plain = {key: value for key, value in ANSWERS[0].items() if key not in ("kept", "reason", "rule_score")}
    claim = artifact.claim(tmp_path / "a", "answers", settings={}, parents={"prompts": prompts})
    (tmp_path / "a" / "answers.jsonl").write_text(json.dumps([plain]) + "\n")
    show_artifact(claim.finish({}).url, dialogue=0, num_rows=1, verify=False)
    assert "answer 0 of a (b -0.250 nats per byte)\n" in capsys.readouterr().out


def test_answers_to_questions_of_an_evaluation_are_no_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = artifact.claim(tmp_path / "tokens", "tokens", settings={}, parents={}).finish({})
    made = artifact.claim(tmp_path / "mt", "answers", settings={}, parents={"tokens": tokens}).finish({"answers": 3})
    show_artifact(made.url, dialogue=0, num_rows=1, verify=False)
    assert '"answers": 3' in capsys.readouterr().out
