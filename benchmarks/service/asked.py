"""A service that is measured: started by the command line's own functions in a state folder of its own, and its clients."""

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from cluster.service import control
from cluster.service.records import FOLDER_VARIABLE
from fusechat.config import load_config
from fusechat.progress import Progress
from inference.serving.client import Connection
from inference.serving.scoring_records import ScoreRequest

from .direct import Dialogues

MODEL = "asked"


def write_run(folder: Path, model: str, dialogues: Path, *, k: int, max_tokens: int, engine: dict[str, Any]) -> Path:
    """A run file of one model twice over, and of its service."""
    section = {"model": model, "engine": engine}
    values = {
        "run": {"output": str(folder / "run")},
        "pivot": {"name": MODEL, **section},
        "sources": [{"name": "twin", **section}],
        "dialogues": {"train": [str(dialogues)], "max_tokens": max_tokens, "held_out_share": 0.02},
        "extraction": {"k": k, "self_check_dialogues": 0, "shard_tokens": 256},
        "serve": {"port": 0, "requests_in_flight": 256, "requests_waiting": 1024, "max_tokens": max_tokens},
    }  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@contextmanager
def running(run: Path, folder: Path) -> Iterator[str]:
    """A service of the run's first model, for the time of a `with` block; gives its address."""
    os.environ[FOLDER_VARIABLE] = str(folder / "state")
    os.environ.pop("FUSECHAT_TOKEN", None)
    config = load_config(run)
    record = control.start(config, [MODEL], progress=Progress())
    try:
        yield record.address
    finally:
        control.stop(config.serve.name, progress=Progress(quiet=True))


def processes() -> dict[int, str]:
    """The service's own processes: pid -> what it is."""
    (values,) = control.status()
    own = {pid: name for name in ("controller", "proxy", "door") for pid in values["processes"].get(name, [])}
    replicas = {one["pid"]: engine["face"] for engine in values["engines"] for one in engine["replicas"]}
    return own | replicas


def cpu_seconds(pids: dict[int, str]) -> dict[str, float]:
    """CPU time of processes so far, by what they are, seconds."""
    times = {name: psutil.Process(pid).cpu_times() for pid, name in pids.items()}
    return {name: one.user + one.system for name, one in times.items()}


def resident_mib() -> dict[str, float]:
    """Resident memory of each process, MiB; kernel pages that all processes share are counted in each."""
    return {name: psutil.Process(pid).memory_info().rss / 2**20 for pid, name in processes().items()}


def score_all(address: str, dialogues: Dialogues, *, clients: int, at_once: int) -> tuple[float, int]:
    """Score all dialogues by many clients, `at_once` in a request; gives seconds and rows."""
    ids, marks = dialogues
    places = [slice(start, start + at_once) for start in range(0, len(ids), at_once)]
    requests = [ScoreRequest(MODEL, token_ids=tuple(ids[at]), is_scored=tuple(marks[at])) for at in places]
    with Connection(address) as connection, ThreadPoolExecutor(clients) as threads:
        started = time.perf_counter()
        rows = sum(len(part) for reply in threads.map(connection.score, requests) for part in reply.rows)
        return time.perf_counter() - started, rows


def score_each(address: str, dialogues: Dialogues) -> list[float]:
    """Seconds of each dialogue, asked one after the other."""
    seconds = []
    with Connection(address) as connection:
        for ids, marks in zip(*dialogues, strict=True):
            started = time.perf_counter()
            connection.score(ScoreRequest(MODEL, token_ids=(ids,), is_scored=(marks,)))
            seconds.append(time.perf_counter() - started)
    return seconds


def write_dialogues(path: Path, count: int, *, words: int) -> Path:
    """Dialogues that list so many things each, the same ones each time; 14 take some hundred tokens."""
    lines = []
    for number in range(count):
        things = [f"{(number * 7919 + i * 104729) % 1000} apples and {(number + i) % 97} pears" for i in range(words)]
        ask = f"List {number}: {', '.join(things[: words // 2])}. Say it again, and go on with as many more."
        messages = [{"role": "user", "content": ask}, {"role": "assistant", "content": ", ".join(things)}]
        lines.append(json.dumps({"id": f"d{number}", "messages": messages}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path
