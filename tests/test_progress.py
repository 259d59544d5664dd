"""What a run shows of its progress; JSON Lines files of a run: whole records are read, whatever killed writers left between them."""

from pathlib import Path

import pytest

from fusechat import progress
from fusechat.progress import Progress, append_json_line, read_json_lines


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


def test_lines_count_what_was_done_before_and_slow_units_by_the_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with Progress() as bars, bars.task("answer", 38, "units", done=19) as task:
        now = 130.0
        task.advance(1)
        now = 134.0
        task.advance(16)
    assert capsys.readouterr().err.splitlines() == [
        "answer  50%  19/38 units",
        "answer  53%  20/38 units  2.0 units/min  9:00 left",
        "answer  95%  36/38 units  0.5 units/s  0:04 left",
    ]
