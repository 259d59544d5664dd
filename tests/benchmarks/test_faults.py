"""The quick collection of `bench_faults`: 20 faults into whole runs, and nothing lost, doubled or left without an explanation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults.equal import compare, normal
from benchmarks.faults.trial import Judgement

ROOT = Path(__file__).parents[2]


@pytest.mark.pipeline
@pytest.mark.timeout(1800)  # about four minutes on two idle cores; a hang is what it is for
def test_quick_collection_of_faults_ends_well(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.bench_faults", "--quick", "--folder", str(tmp_path), "--at-once", "2"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=1700, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures.pop("faults") == 20 and figures.pop("seconds") > 0
    assert set(figures.values()) == {0}, done.stdout[-6000:]


def test_comparison_sees_what_is_lost_doubled_and_different() -> None:
    whole = {"a": b"1", "b": b"2", "targets/x/metrics.jsonl": b'{"step": 1}\n{"step": 2}'}
    assert not compare(whole, dict(whole))
    left = {"a": b"3", "c": b"4", "targets/x/metrics.jsonl": b'{"step": 1}\n{"step": 1}'}
    difference = compare(whole, left)
    assert difference.lost == ["b"] and difference.differing == ["a"]
    assert difference.doubled == ["c", "targets/x/metrics.jsonl"]


def test_comparison_leaves_out_times_and_places_and_no_figures() -> None:
    one = normal(
        "report/report.json", b'{"loss": 1.5, "seconds": 2, "path": "/w/trials/7/run/fused", "updated": "then"}'
    )
    other = normal(
        "report/report.json", b'{"loss": 1.5, "seconds": 9, "path": "/w/undisturbed/rows/fused", "updated": "now"}'
    )
    assert one == other != normal("report/report.json", b'{"loss": 1.6, "path": "/w/trials/7/run/fused"}')
    assert normal("targets/x/model.safetensors", b'{"seconds": 2}') == b'{"seconds": 2}'


def test_fault_is_well_only_if_nothing_stands_against_it() -> None:
    good = Judgement(1, "family", "what", remedies=["again"])
    assert good.is_good
    assert not Judgement(1, "family", "what", tracebacks=1).is_good and not Judgement(1, "f", "w", lost=["a"]).is_good
