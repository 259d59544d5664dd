"""What a run left, compared with an undisturbed one.

Files of artifacts are compared byte for byte. Documents that tell times, places or what else differs between two runs of
one recipe are compared without these; logs and what only makes a command faster are not compared.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLACE = re.compile(rb"/[^\"\s`|,]*/(?:trials/\d+/(?:disk/)?(?:run|other)|undisturbed/\w+)(?![\w])")
"""A run's folder where it is told: files of finished artifacts name the one in which they were made."""
LEFT_OUT = re.compile(r"^(logs/|measured/|digests\.json$|run\.json$|\.lock$|report/index\.html$)|\.lock$")
"""Logs, caches, what holds the place of the run; the page is made of report.json, which is compared."""
VARYING = {
    "seconds", "finished", "versions", "started", "hours", "created", "time", "machine", "software", "run_folder", "tokens_per_second",
    "steps_per_second", "seal", "files", "command", "updated", "engine_seconds", "tstamp", "answer_id",
}  # fmt: skip
"""Keys of JSON documents whose values tell when and where; `files` are digests of what is compared itself."""
OF_THE_COURSE = {"artifacts", "config", "extraction", "steps", "run", "fingerprint"}
"""Keys of report.json, and of the merge's report in it, that tell how the run came about; its figures are all else."""


@dataclass(frozen=True)
class Difference:
    """What of a run is not as in the undisturbed one."""

    lost: list[str]
    """Files that are not there."""
    doubled: list[str]
    """Files that the undisturbed run does not have, and lines that stand in one twice."""
    differing: list[str]
    """Files with other bytes."""

    def __bool__(self) -> bool:
        return bool(self.lost or self.doubled or self.differing)


def contents(folder: Path) -> dict[str, bytes]:
    """File -> what is compared of it."""
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: normal(name, path.read_bytes()) for name, path in files.items() if not LEFT_OUT.search(name)}


def normal(name: str, data: bytes) -> bytes:
    """A file's bytes without what differs between any two runs; as they are where it is not what its name says."""
    if name.endswith((".md", ".json", ".jsonl")):
        data = PLACE.sub(b"RUN", data)
    if not name.endswith((".json", "metrics.jsonl")) and not (name.startswith("answers/") and name.endswith(".jsonl")):
        return data
    try:
        documents = [json.loads(line) for line in data.splitlines()] if name.endswith(".jsonl") else [json.loads(data)]
    except ValueError:
        return data
    drop = VARYING | (OF_THE_COURSE if name.endswith(("merge_report.json", "report/report.json")) else set())
    return json.dumps([_without(document, drop) for document in documents], sort_keys=True).encode()


def _without(value: Any, drop: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(inner, drop) for key, inner in value.items() if key not in drop}
    return [_without(inner, drop) for inner in value] if isinstance(value, list) else value


def compare(expected: dict[str, bytes], got: dict[str, bytes]) -> Difference:
    """What differs between two of `contents`."""
    doubled = sorted(got.keys() - expected.keys())
    doubled += [name for name, data in got.items() if name.endswith(".jsonl") and _has_twice(data) and name in expected]
    differing = [name for name in sorted(expected.keys() & got.keys()) if expected[name] != got[name]]
    return Difference(
        sorted(expected.keys() - got.keys()), doubled, [name for name in differing if name not in doubled]
    )


def _has_twice(data: bytes) -> bool:
    lines = [line for line in data.splitlines() if line.strip()]
    return len(lines) != len(set(lines))
