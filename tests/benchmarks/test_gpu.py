"""The command that measures a GPU: its first parts, with tiny shapes on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.table import WANTED

ROOT = Path(__file__).parents[2]


RUN = ["equality", "extract", "sharded"]
"""Parts that are tried here; `python -m benchmarks.gpu --dry-run` tries all, in nine minutes on two cores."""


@pytest.mark.timeout(900)
def test_dry_run_runs_its_parts_and_fills_their_figures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--rounds", "1", "--minutes", "14", "--parts", *RUN]
    lines = subprocess.run(
        [*command, "--folder", str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.splitlines()
    objects = [json.loads(line) for line in lines if line.startswith("{")]
    *parts, last = objects
    assert [part["part"] for part in parts] == RUN
    assert lines[-1] == json.dumps(last) and last["dry_run"] and last["equality_ok"] is True
    assert last["missing_parts"] == [name for name in PARTS if name not in RUN]
    assert isinstance(last["extract_over_prefill_gpu"], float) and last["step_over_sft_gpu"] is None
    table = lines[len(parts) : -1]
    assert table.count("|---|---|---|") == 1
    shown = {name: "not measured" if last[name] is None else last[name] for name in WANTED}
    assert all(any(line.startswith(f"| `{name}` | {shown[name]} |") for line in table) for name in WANTED)
    profile = last["profile"]["sections"]
    assert all(profile[section]["host_ms"] > 0 for section in profile if section not in ("rest", "transfers"))
