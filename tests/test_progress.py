"""JSON Lines files of a run: whole records are read, whatever killed writers left between them."""

from pathlib import Path

import pytest

from fusechat.progress import append_json_line, read_json_lines


@pytest.mark.parametrize("torn", ['{"text": "half of', '{"inner": {"whole": 1}', '{"text": "\u84dd'.encode()[:-1]])
def test_torn_line_is_passed_over_and_the_next_record_begins_a_line(tmp_path: Path, torn: str | bytes) -> None:
    path = tmp_path / "logs" / "run.jsonl"
    append_json_line(path, {"text": "a\u2028b"})
    with path.open("ab") as file:
        file.write(torn if isinstance(torn, bytes) else torn.encode())
    assert read_json_lines(path) == [{"text": "a\u2028b"}]
    append_json_line(path, {"n": 2})
    append_json_line(path, {"n": 3})
    assert read_json_lines(path) == [{"text": "a\u2028b"}, {"n": 2}, {"n": 3}]


def test_file_that_is_not_there_has_no_records(tmp_path: Path) -> None:
    assert read_json_lines(tmp_path / "none.jsonl") == []
