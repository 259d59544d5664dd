"""What a run's jobs are called on a cluster, and the command that each of them is."""

import hashlib
import json
import re
import shlex
from pathlib import Path

from fusechat.config import RunConfig

LONGEST_NAME = 60
"""Of the run's folder in the name of a job."""


def attempt_prefix(config: RunConfig) -> str:
    """What the submission ids of all attempts at a run begin with: its folder's name, and a digest of all that decides it.

    The name has letters that may stand in a URL, because an id is part of Ray's addresses; `plan` and `cluster` decide nothing.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", config.run.output.name)[:LONGEST_NAME].strip("-.") or "run"
    values = {name: section for name, section in config.dump().items() if name not in ("plan", "cluster")}
    return f"{name}-{hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]}-"


def entrypoint(run_file: Path, overrides: list[str], stage: str) -> str:
    """The job's command line; a run's working directory is where it starts."""
    parts = ["python", "-m", "fusechat", stage, "-c", str(run_file)]
    for override in overrides:
        parts += ["--set", override]
    return shlex.join(parts)
