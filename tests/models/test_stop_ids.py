"""What ends an answer: the model's own ids, and what ends a turn under its template."""

import json
from pathlib import Path

import numpy as np

from fusechat.models.stop_ids import own_stop_ids
from fusechat.storage.tokens import Tokens


def test_own_stop_ids_come_from_the_first_file_that_names_any(tmp_path: Path) -> None:
    assert own_stop_ids(tmp_path) == []
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 2}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": None}))
    assert own_stop_ids(tmp_path) == [2]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    assert own_stop_ids(tmp_path) == [3, 4]


def test_turn_end_ids_are_the_last_template_token_of_each_turn() -> None:
    ids = np.array([1, 50, 51, 7, 8, 1, 60, 8, 2], np.int32)
    is_scored = np.array([0, 0, 1, 1, 1, 0, 1, 1, 0], bool)
    spans = np.array([[-1, -1], [0, 2], [2, 4], [-1, -1], [-1, -1], [-1, -1], [4, 5], [-1, -1], [-1, -1]], np.int32)
    assert Tokens.of_contents(ids, is_scored, spans, np.array([0, 5, 9]), {}).turn_end_ids() == [8]
