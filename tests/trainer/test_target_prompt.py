"""A target's folder says where its answers end and how it is asked."""

import json
from pathlib import Path

import numpy as np
import pytest

from fusechat.storage.tokens import Tokens
from fusechat.text.prompt_file import read_prompt_file
from fusechat.text.rendered import ChatTemplate
from trainer.target_prompt import write_target_prompt

TEMPLATE = ChatTemplate("{{ messages }}", {"enable_thinking": False}, "2026-01-31", "trained", True)


def tokens_that_end_in(token_id: int) -> Tokens:
    ids, spans = np.array([5, 6, token_id], np.int32), np.array([[-1, -1], [0, 1], [-1, -1]], np.int32)
    return Tokens.of_contents(ids, np.array([False, True, True]), spans, np.array([0, 3]), TEMPLATE.to_attributes())


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (None, 9),
        ({}, 9),
        ({"eos_token_id": 1, "top_k": 5}, [1, 9]),
        ({"eos_token_id": [1, 9]}, [1, 9]),
        ({"eos_token_id": 9}, 9),
    ],
)
def test_target_stops_where_its_training_ended_turns(tmp_path: Path, own: dict | None, expected: object) -> None:
    path = tmp_path / "generation_config.json"
    if own is not None:
        path.write_text(json.dumps(own))
    write_target_prompt(tmp_path, tokens_that_end_in(9))
    written = json.loads(path.read_text())
    assert written["eos_token_id"] == expected
    assert {**(own or {}), "eos_token_id": expected} == written


def test_target_is_asked_as_it_was_trained(tmp_path: Path) -> None:
    write_target_prompt(tmp_path, tokens_that_end_in(9))
    assert read_prompt_file(tmp_path, TEMPLATE.text) == TEMPLATE
    assert read_prompt_file(tmp_path / "other", "text") == ChatTemplate("text")
