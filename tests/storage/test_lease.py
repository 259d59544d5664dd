"""Two drivers on one store: the second refuses while the first lives, and takes over once it is dead."""

import errno
import json
import platform
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import another_process_within

from fusechat.errors import BusyError
from fusechat.storage import lease
from fusechat.storage.files import read_json, write_json
from fusechat.storage.lease import LEASE_FILE, Lease, hold_store


def elsewhere(beat: int) -> dict:
    return {
        "holder": "ann@elsewhere, process 7", "id": "x", "host": "elsewhere", "process": 7, "process_started": 0.0, "beat": beat
    }  # fmt: skip


def test_lease_of_a_living_process_is_refused_and_a_killed_ones_is_taken_at_once(tmp_path: Path) -> None:
    with (
        another_process_within(
            f"from fusechat.storage.lease import hold_store\nhold_store({str(tmp_path)!r}, 'refuse')"
        ) as holder,
        pytest.raises(BusyError, match=f"process {holder} is writing this store"),
        hold_store(str(tmp_path), "refuse"),
    ):
        pass
    assert (tmp_path / LEASE_FILE).exists()
    with hold_store(str(tmp_path), "refuse") as taken:
        assert taken is not None
    assert not (tmp_path / LEASE_FILE).exists()


def test_lease_in_one_process_is_held_once(tmp_path: Path) -> None:
    with hold_store(str(tmp_path), "refuse"):
        with pytest.raises(BusyError), hold_store(str(tmp_path), "refuse"):
            pass
        assert (tmp_path / LEASE_FILE).exists()


def test_lease_of_a_finished_store_is_not_taken(tmp_path: Path) -> None:
    write_json(str(tmp_path / "artifact.json"), {})
    with hold_store(str(tmp_path), "refuse") as taken:
        assert taken is None and not (tmp_path / LEASE_FILE).exists()
    with hold_store(str(tmp_path), "restart") as taken:
        assert taken is not None


def test_lease_that_a_dead_driver_left_in_a_finished_store_is_taken_away_and_no_other(tmp_path: Path) -> None:
    write_json(str(tmp_path / "artifact.json"), {})
    url, mark = str(tmp_path), tmp_path / LEASE_FILE
    with (
        another_process_within(
            f"from fusechat.storage.lease import hold_store\nhold_store({url!r}, 'restart')"
        ) as holder,
        hold_store(url, "refuse") as taken,
    ):
        assert taken is None and json.loads(mark.read_text())["process"] == holder
    with hold_store(url, "refuse") as taken:
        assert taken is None and not mark.exists()
    write_json(str(mark), elsewhere(0))
    with hold_store(url, "refuse") as taken:
        assert taken is None and mark.exists()


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"holder": "ann"}', "{", json.dumps({**elsewhere(0), "host": platform.node(), "process": -7})]
)
def test_lease_that_is_none_is_taken_over(tmp_path: Path, text: str) -> None:
    (tmp_path / LEASE_FILE).write_text(text)
    with hold_store(str(tmp_path), "refuse") as taken:
        assert taken is not None


def test_lease_on_another_machine_lives_as_long_as_its_beat_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.01)
    url = str(tmp_path / LEASE_FILE)
    write_json(url, elsewhere(0))
    ended = threading.Event()

    def beat() -> None:
        number = 0
        while not ended.wait(0.05):
            number += 1
            write_json(url, elsewhere(number))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(BusyError, match="ann@elsewhere"):
            Lease(str(tmp_path)).take(patience_seconds=60)
    finally:
        ended.set()
        thread.join()
    taken = Lease(str(tmp_path))
    taken.take(patience_seconds=0.3)
    taken.check()
    taken.end()


def test_lease_taken_over_meanwhile_is_noticed_and_left_alone(tmp_path: Path) -> None:
    mine = Lease(str(tmp_path), beat_seconds=0.02)
    mine.take()
    write_json(str(tmp_path / LEASE_FILE), elsewhere(1))
    deadline = time.monotonic() + 30
    with pytest.raises(BusyError, match="has taken this store over"):
        while time.monotonic() < deadline:
            mine.check()
            time.sleep(0.01)
    mine.end()
    assert read_json(str(tmp_path / LEASE_FILE))["id"] == "x"


def test_lease_survives_a_hiccup_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[int] = []

    def hiccup(url: str, document: object) -> None:
        failures.append(1)
        raise OSError(errno.EIO, "input/output error")

    mine = Lease(str(tmp_path), beat_seconds=0.02)
    mine.take()
    with monkeypatch.context() as broken:
        broken.setattr(lease, "write_json", hiccup)
        wait_for(lambda: failures)
    beat = read_json(str(tmp_path / LEASE_FILE))["beat"]
    wait_for(lambda: read_json(str(tmp_path / LEASE_FILE))["beat"] > beat)
    mine.end()


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
