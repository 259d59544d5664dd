"""A whole run as a job on a real Ray head: all stages, and what its driver has done when it ends."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray_head
import yaml
from ray_head import Head

LOOKS_ON = """
import atexit, json, os, sys

def look_on():
    import torch
    from torch.nn.modules.module import register_module_parameter_registration_hook

    made = []
    register_module_parameter_registration_hook(lambda module, name, parameter: made.append(name))

    def note():
        with open(os.environ["SEEN_FILE"], "w") as file:
            json.dump({"parameters": len(made), "cuda": torch.cuda.is_initialized(), "vllm": "vllm" in sys.modules}, file)

    atexit.register(note)

if sys.orig_argv[1:4] == ["-m", "fusechat", "run"]:
    look_on()
"""
"""In the driver alone: counts the parameters of all networks that are made there."""


@pytest.fixture
def head() -> Iterator[Head]:
    head = ray_head.start_head()
    yield head
    head.stop()


def test_submitted_run_does_all_model_work_on_workers(head: Head, run_file: Path, tmp_path: Path) -> None:
    project, site, seen = tmp_path / "project", tmp_path / "site", tmp_path / "seen.json"
    project.mkdir()
    site.mkdir()
    (site / "sitecustomize.py").write_text(LOOKS_ON)
    run = yaml.safe_load(run_file.read_text())
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    run["cluster"]["env_vars"] = {"PYTHONPATH": path, "SEEN_FILE": str(seen)}
    (project / "run.yaml").write_text(yaml.safe_dump(run))
    where = ("-c", str(project / "run.yaml"), "--working-dir", str(project), "--address", head.dashboard)
    done = subprocess.run(
        [sys.executable, "-m", "fusechat", "submit", *where], capture_output=True, text=True, timeout=580,
        env=head.environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "SUCCEEDED" in done.stderr and (Path(run["run"]["output"]) / "report" / "report.json").is_file()
    assert json.loads(seen.read_text()) == {"parameters": 0, "cuda": False, "vllm": False}
