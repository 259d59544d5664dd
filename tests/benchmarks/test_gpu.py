"""The command that measures a GPU: every part of it, in full, with tiny shapes on a CPU. Starts a dozen engines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.table import WANTED

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(1800)
def test_dry_run_runs_every_part_and_fills_every_figure(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--rounds", "1", "--minutes", "28"]
    found = subprocess.run(
        [*command, "--folder", str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.splitlines()
    objects = [json.loads(line) for line in found if line.startswith("{")]
    *parts, last = objects
    assert [part["part"] for part in parts] == list(PARTS)
    assert found[-1] == json.dumps(last) and last["missing_parts"] == [] and last["dry_run"]
    assert last["equality_ok"] is True
    for name in WANTED:
        assert isinstance(last[name], float | int), name
    table = found[len(parts) : -1]
    assert table.count("|---|---|---|") == 1
    assert all(any(line.startswith(f"| `{name}` | {last[name]} |") for line in table) for name in WANTED)
    profile = last["profile"]["sections"]
    assert all(profile[section]["host_ms"] > 0 for section in profile if section not in ("rest", "transfers"))
