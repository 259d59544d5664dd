"""Where services of this user on this machine are written down: a name in; address, Ray and processes out. Imports no Ray."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from fusechat.errors import ClusterSetupError

FOLDER_VARIABLE = "FUSECHAT_STATE"
"""Environment variable of the folder that holds the records; default: below XDG's folder for state."""


@dataclass(frozen=True)
class Process:
    """A process, so that another one which got its number later is not taken for it."""

    pid: int
    started: float
    """Seconds since the epoch."""

    @classmethod
    def of(cls, pid: int) -> "Process":
        return cls(pid, psutil.Process(pid).create_time())

    @property
    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < 1
            return same and bool(process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False


@dataclass(frozen=True)
class ServiceRecord:
    """A service that was started from here."""

    name: str
    address: str
    """http URL of its door."""
    ray_address: str
    token_variable: str
    """Environment variable that holds its token."""
    has_token: bool
    keeper: Process | None
    """Holds the local Ray that was started for it; None: it runs on a cluster."""

    @property
    def may_run(self) -> bool:
        """False where it is known to be gone; a cluster has to be asked."""
        return self.keeper is None or self.keeper.alive

    def token(self) -> str | None:
        """From the environment.

        Raises:
            ClusterSetupError: the service wants one, and the variable is empty.
        """
        value = os.environ.get(self.token_variable) or None
        if self.has_token and value is None:
            raise ClusterSetupError(f"{self.name}: the service wants a token; set {self.token_variable} to it")
        return value if self.has_token else None


def folder() -> Path:
    """Of the records, made for this user alone."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    path = Path(os.environ.get(FOLDER_VARIABLE) or Path(state) / "fusechat/services")
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def path_of(name: str, suffix: str = "json") -> Path:
    """A file of one service."""
    return folder() / f"{name}.{suffix}"


def read_record(name: str) -> ServiceRecord | None:
    """What is written down of a service; None where nothing is, or it cannot be read."""
    try:
        values = json.loads(path_of(name).read_text(encoding="utf-8"))
        keeper = values.pop("keeper")
        return ServiceRecord(**values, keeper=Process(**keeper) if keeper else None)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def all_records() -> list[ServiceRecord]:
    """Of all services, by name."""
    records = [read_record(path.stem) for path in sorted(folder().glob("*.json"))]
    return [record for record in records if record is not None]


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only this user reads, by rename."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
    new.replace(path)


def write_record(record: ServiceRecord) -> None:
    """Write a service down."""
    write_private(path_of(record.name), json.dumps(asdict(record)).encode())


def remove_record(name: str) -> None:
    """Forget a service."""
    for suffix in ("json", "spec"):
        path_of(name, suffix).unlink(missing_ok=True)
