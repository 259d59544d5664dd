"""A real service of a tiny model for tests: started and ended by the command line, in a state folder of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from inference.serving.client import Connection

TOKEN = "a-token-of-the-tests-0123456789"
COMMAND_SECONDS = 420


@dataclass
class Served:
    """A running service."""

    folder: Path
    address: str
    environment: dict[str, str]

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """`fusechat serve ...` of this service's user."""
        return serve(self.environment, arguments)

    def connection(self, patience: float = 120.0) -> Connection:
        """A client that may come in."""
        return Connection(self.address, token=TOKEN, patience=patience)

    def status(self) -> dict[str, Any]:
        """What `--status --json` says of it."""
        values: dict[str, Any] = json.loads(self.command("--status", "--json").stdout)[0]
        return values

    def stop(self) -> None:
        """End it."""
        self.command("--stop")


def environment(folder: Path, **more: str) -> dict[str, str]:
    """A process's environment with a state folder and a token of the test's own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return {**kept, "FUSECHAT_STATE": str(folder / "state"), "FUSECHAT_TOKEN": TOKEN, **more}


def serve(environment: dict[str, str], arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """`fusechat serve ...`, whatever it ends with."""
    return subprocess.run(
        [sys.executable, "-m", "fusechat", "serve", *arguments], capture_output=True, text=True, env=environment,
        timeout=COMMAND_SECONDS,
    )  # fmt: skip


def run_of(folder: Path, model: Path, **sections: Any) -> Path:
    """A run file of one tiny model twice over, whose service is small."""
    engine = {"kv_cache_gib": 0.05}
    values = {
        "run": {"output": str(folder / "out")},
        "pivot": {"name": "llama", "model": str(model), "engine": engine},
        "sources": [{"name": "twin", "model": str(model), "engine": engine}],
        "dialogues": {"train": [str(folder / "train.jsonl")], "max_tokens": 128},
        "extraction": {"k": 5, "self_check_dialogues": 2},
        "cluster": {"num_cpus": 2},
        "serve": {"port": 0, "faces": ["score", "generate"], "requests_in_flight": 4, "requests_waiting": 2},
    }  # fmt: skip
    for name, fields in sections.items():
        values[name] = {**values.get(name, {}), **fields}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def start_service(folder: Path, model: Path, **sections: Any) -> Served:
    """Serve the tiny model; returns when it answers."""
    own = environment(folder)
    done = serve(own, ["-c", str(run_of(folder, model, **sections)), "--models", "llama"])
    assert done.returncode == 0, done.stderr + done.stdout
    return Served(folder, done.stdout.strip().splitlines()[-1], own)


def wait_until(holds: Any, seconds: float = 180.0) -> None:
    """Wait for what comes by itself."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.3)
