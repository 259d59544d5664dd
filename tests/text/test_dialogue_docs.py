"""docs/dialogues.md: its examples are read, those under one heading as the same dialogue, and it tells of every key."""

import re
from pathlib import Path

import pytest

from fusechat.text.dialogue_rows import COLUMNS
from fusechat.text.dialogues import read_dialogues
from fusechat.text.message_reading import KEYS, ROLES

PAGE = (Path(__file__).parents[2] / "docs" / "dialogues.md").read_text(encoding="utf-8")
SECTIONS = {part.split("\n")[0]: re.findall(r"```json\n(.*?)```", part, re.DOTALL) for part in PAGE.split("\n## ")[1:]}
EXAMPLES = {heading: blocks for heading, blocks in SECTIONS.items() if blocks}


@pytest.mark.parametrize("heading", EXAMPLES)
def test_examples_under_one_heading_are_the_same_dialogue(tmp_path: Path, heading: str) -> None:
    read = []
    for number, block in enumerate(EXAMPLES[heading]):
        path = tmp_path / f"{number}.json"
        path.write_text(f"[{block}]", encoding="utf-8")
        read += read_dialogues(path)
    assert len(read) == len(EXAMPLES[heading]) >= 2
    assert set(read) == {read[0]}


def test_page_shows_every_feature_and_names_every_key_and_role() -> None:
    assert len(EXAMPLES) == 6
    quoted = set(re.findall(r"`([a-z_]+)`", PAGE))
    assert {*COLUMNS, *KEYS} <= quoted
    assert set(ROLES) - {"system", "user", "assistant"} <= quoted
