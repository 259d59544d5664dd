"""What the command that measures a GPU says when it was cut off, failed, or had no GPU. No engine is started."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.table import WANTED

ROOT = Path(__file__).parents[2]


def arguments_of(*parts: str, minutes: float = 8) -> argparse.Namespace:
    return argparse.Namespace(parts=list(parts), minutes=minutes, rounds=1, dry_run=True)


def answers(monkeypatch: pytest.MonkeyPatch, statuses: dict[str, int | None]) -> list[str]:
    """Parts that end with these statuses and say one figure each; the list of those that were begun."""
    begun: list[str] = []

    def run_part(name: str, *_: object) -> tuple[int | None, str]:
        begun.append(name)
        return statuses[name], json.dumps({f"{name}_figure": 1.5})

    monkeypatch.setattr(command, "run_part", run_part)
    return begun


def test_part_that_was_cut_off_loses_no_other_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, {"equality": 0, "extract": None, "moe": 0})
    arguments = arguments_of("equality", "extract", "moe")
    assert command.run_parts(tmp_path, arguments) == []
    text = command.report(tmp_path, arguments)
    last = json.loads(text.splitlines()[-1])
    assert last["equality_figure"] == last["moe_figure"] == 1.5 and "extract_figure" not in last
    assert last["missing_parts"] == [name for name in PARTS if name not in ("equality", "moe")]
    assert f"Not measured: --parts {' '.join(last['missing_parts'])}" in text
    assert all(last[name] is None for name in WANTED)
    assert text.count("| not measured |") == len(WANTED)


def test_later_call_over_the_same_folder_adds_to_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, dict.fromkeys(PARTS, 0))
    command.run_parts(tmp_path, arguments_of("extract"))
    command.run_parts(tmp_path, arguments_of("moe"))
    last = json.loads(command.report(tmp_path, arguments_of()).splitlines()[-1])
    assert last["extract_figure"] == last["moe_figure"] == 1.5


def test_nothing_is_measured_where_equality_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = answers(monkeypatch, {"equality": 1, "extract": 0})
    assert command.run_parts(tmp_path, arguments_of("equality", "extract")) == ["equality"]
    assert begun == ["equality"]


def test_no_part_is_begun_without_time_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = answers(monkeypatch, {})
    assert command.run_parts(tmp_path, arguments_of("equality", minutes=0.1)) == []
    assert begun == []


def test_part_without_time_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    started = time.monotonic()
    assert command.run_part("loss", tmp_path, arguments_of(), 0.05) == (None, "")
    assert time.monotonic() - started < 60


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_only_a_dry_run_is_offered() -> None:
    found = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 1 and "found no GPU; on a CPU only --dry-run is of use" in found.stderr
