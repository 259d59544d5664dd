"""`fusechat status` of a run whose extraction was cut short: what stands in the store and in the log."""

import json
import re
from pathlib import Path

import pytest
import trainer_runs

from fusechat.app import status
from fusechat.config import RunConfig, load_config
from fusechat.config.artifacts import ArtifactEntry
from fusechat.storage.row_store import RowStore


def write_log(config: RunConfig, *records: dict) -> None:
    path = config.log_path("extract.other")
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


@pytest.fixture
def cut_short(tmp_path: Path) -> tuple[RunConfig, RowStore]:
    """A run of which `other` misses its last two shards, and has no record yet."""
    config = trainer_runs.make_run(tmp_path, dialogues=60)
    url = config.logprobs_url("other")
    (Path(url) / "artifact.json").unlink()
    store = RowStore.open(url, "logprobs")
    for shard in range(store.layout.num_shards - 2, store.layout.num_shards):
        for path in Path(url).rglob(f"c/{shard}*"):
            if path.is_file():
                path.unlink()
    assert len(store.missing_shards()) == 2
    return config, store


def test_status_shows_rate_and_time_left_of_the_last_driver(cut_short: tuple[RunConfig, RowStore]) -> None:
    config, store = cut_short
    done = {"event": "done", "tokens": 9}
    write_log(
        config,
        {**done, "time": 900.0, "shard": 0, "rows": 5},
        {**done, "time": 10.0, "shard": 1, "rows": 700},  # another driver: its first shard tells when it began
        {**done, "time": 20.0, "shard": 2, "rows": 100},
        {**done, "time": 30.0, "shard": 3, "rows": 300},
    )
    rows = store.layout.num_rows_of(store.missing_shards())
    (line,) = status.shard_news(config, ArtifactEntry("extract", "", "other", store.url, "logprobs"))
    assert line == f"20 rows/s since its first shard, 0:{round(rows / 20):02d} left at that rate"


def test_status_names_shards_set_aside_and_the_last_error_that_still_counts(
    cut_short: tuple[RunConfig, RowStore], capsys: pytest.CaptureFixture[str]
) -> None:
    config, store = cut_short
    last = store.layout.num_shards - 1
    write_log(
        config,
        {"event": "retried", "time": 1.0, "shard": 0, "attempt": 1, "error": "cured since"},
        {"event": "retried", "time": 2.0, "shard": last, "attempt": 1, "error": "first"},
        {"event": "set_aside", "time": 3.0, "shard": last, "attempt": 2, "error": "the engine\nraised"},
    )
    assert status.shard_news(config, ArtifactEntry("extract", "", "other", store.url, "logprobs")) == [
        f"set aside: shards {last}",
        "last error: the engine raised",
    ]
    status.show_status(config)
    assert "last error: the engine raised" in capsys.readouterr().out


def test_status_shows_how_far_a_target_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = trainer_runs.make_run(tmp_path)
    folder = config.target_path("other")
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text("{}", encoding="utf-8")
    assert status.training_news(config, "other") == ""
    times = [(1, 500.0), (2, 510.0), (3, 7.0), (4, 9.0), (7, 15.0)]  # another process went on with the third step
    records = [{"step": step, "steps": 20, "seconds": seconds, "loss": 2.5} for step, seconds in times]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    monkeypatch.setenv("COLUMNS", "200")
    status.show_status(config)
    assert "step 7/20  loss 2.5000  2.0 s a step, 0:26 left at that rate" in capsys.readouterr().out


def test_watched_status_ends_with_the_run(
    cut_short: tuple[RunConfig, RowStore], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, _ = cut_short
    looks: list[float] = []

    def finish(seconds: float) -> None:
        looks.append(seconds)
        monkeypatch.setattr(status, "steps", lambda _: [])

    monkeypatch.setattr(status.time, "sleep", finish)
    status.watch_status(config)
    assert looks == [status.WATCH_SECONDS] and "logprobs" not in capsys.readouterr().err


def test_status_shows_how_many_chunks_a_writer_has_answered(
    run_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(run_file, ["dialogues.prompts=[p.txt]"])
    folder = config.written_answers_path("mixtral")
    (folder / "parts").mkdir(parents=True)
    (folder / "plan.json").write_text("{}", encoding="utf-8")
    for number in range(3):
        (folder / "parts" / f"{number}.json").write_text("{}", encoding="utf-8")
    monkeypatch.setenv("COLUMNS", "200")
    status.show_status(config)
    shown = capsys.readouterr().out
    assert re.search(r"write +answers mixtral +begun +3 chunks", shown), shown
    assert re.search(r"write +prompts +-", shown) and re.search(r"write +dialogues +-", shown), shown
