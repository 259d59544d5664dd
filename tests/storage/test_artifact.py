"""Artifacts: skipped when done, resumed when begun, refused when another recipe made them."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError
from tiny_runs import another_process_within

from fusechat.errors import ArtifactError, BusyError, StorageError
from fusechat.storage import artifact
from fusechat.storage.files import write_json
from fusechat.storage.run_lock import run_lock
from fusechat.storage.write_errors import storage_errors


def make(
    folder: Path, *, settings: dict | None = None, parents: dict | None = None, if_changed: str = "refuse"
) -> artifact.Claim:
    return artifact.claim(folder, "tokens", settings=settings or {"k": 1}, parents=parents or {}, if_changed=if_changed)


def test_claim_finished_artifact_is_handed_back_whole(tmp_path: Path) -> None:
    first = make(tmp_path / "a")
    assert first.artifact is None
    made = first.finish({"rows": 3})
    again = make(tmp_path / "a")
    assert again.artifact is not None and again.artifact.fingerprint == made.fingerprint
    assert artifact.load(tmp_path / "a", "tokens").counts == {"rows": 3}


def test_claim_begun_artifact_is_resumed_not_finished(tmp_path: Path) -> None:
    make(tmp_path / "a")
    again = make(tmp_path / "a")
    assert again.artifact is None
    with pytest.raises(ArtifactError, match="run the stage that makes it first"):
        artifact.load(tmp_path / "a", "tokens")


@pytest.mark.parametrize("finish", [True, False])
def test_claim_of_another_recipe_is_refused_and_shows_what_differs(tmp_path: Path, finish: bool) -> None:
    claim = make(tmp_path / "a", settings={"k": 1, "engine": {"dtype": "auto"}})
    (tmp_path / "a" / "data").touch()
    if finish:
        claim.finish({})
    with pytest.raises(ArtifactError) as error:
        make(tmp_path / "a", settings={"k": 2, "engine": {"dtype": "float32"}})
    assert "settings.k: 1 -> 2" in str(error.value) and "settings.engine.dtype: 'auto' -> 'float32'" in str(error.value)


def test_claim_of_a_folder_where_nothing_was_made_yet_takes_the_corrected_recipe(tmp_path: Path) -> None:
    make(tmp_path / "a", settings={"k": 1})
    claim = make(tmp_path / "a", settings={"k": 2})
    assert claim.finish({}).record["settings"] == {"k": 2}


def test_claim_restart_deletes_only_after_a_change(tmp_path: Path) -> None:
    make(tmp_path / "a").finish({})
    (tmp_path / "a" / "data").touch()
    assert make(tmp_path / "a", if_changed="restart").artifact is not None
    assert (tmp_path / "a" / "data").exists()
    assert make(tmp_path / "a", settings={"k": 2}, if_changed="restart").artifact is None
    assert not (tmp_path / "a" / "data").exists()


def test_claim_restart_keeps_the_lease_of_whoever_clears(tmp_path: Path) -> None:
    make(tmp_path / "a").finish({})
    (tmp_path / "a" / artifact.LEASE_FILE).touch()
    make(tmp_path / "a", settings={"k": 2}, if_changed="restart")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {artifact.RECIPE_FILE, artifact.LEASE_FILE}


@pytest.mark.parametrize("deletions", [1, 2, 3])
def test_claim_restart_cut_short_never_mixes_two_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deletions: int
) -> None:
    make(tmp_path / "a").finish({})
    for name in ("chunks", "more"):
        (tmp_path / "a" / name).mkdir()
        (tmp_path / "a" / name / "0").write_text("of the first recipe")
    left = iter(range(deletions - 1))

    class Killed(BaseException):
        pass

    def cut(call: Callable[..., Any]) -> Callable[..., Any]:
        def delete(*arguments: Any, **options: Any) -> Any:
            if next(left, None) is None:
                raise Killed
            return call(*arguments, **options)

        return delete

    with monkeypatch.context() as context:
        for name in ("rm", "rm_file"):
            context.setattr(LocalFileSystem, name, cut(getattr(LocalFileSystem, name)))
        with pytest.raises(Killed):
            make(tmp_path / "a", settings={"k": 2}, if_changed="restart")
    assert make(tmp_path / "a", settings={"k": 2}, if_changed="restart").artifact is None
    assert [path.name for path in (tmp_path / "a").iterdir()] == [artifact.RECIPE_FILE]


def test_fingerprint_follows_settings_and_parents(tmp_path: Path) -> None:
    parent = make(tmp_path / "p").finish({})
    other = make(tmp_path / "q", settings={"k": 9}).finish({})
    child = make(tmp_path / "c", parents={"tokens": parent}).finish({"seconds do not count": 1})
    same = make(tmp_path / "d", parents={"tokens": parent}).finish({})
    different = make(tmp_path / "e", parents={"tokens": other}).finish({})
    assert child.fingerprint == same.fingerprint != different.fingerprint


def test_load_another_kind_or_broken_record_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "a").finish({})
    with pytest.raises(ArtifactError, match="expected 'aligned'"):
        artifact.load(tmp_path / "a", "aligned")
    (tmp_path / "a" / "artifact.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match="not a readable JSON"):
        artifact.load(tmp_path / "a", "tokens")


def test_write_json_replaces_in_one_step_and_leaves_nothing_beside(tmp_path: Path) -> None:
    write_json(str(tmp_path / "f.json"), {"a": 1})
    write_json(str(tmp_path / "f.json"), {"a": 2})
    assert json.loads((tmp_path / "f.json").read_text()) == {"a": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["f.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_storage_errors_full_or_read_only_target_is_the_users_matter(number: int) -> None:
    with pytest.raises(StorageError, match="what is finished is kept") as error, storage_errors("/somewhere"):
        raise OSError(number, "no")
    assert error.value.exit_status == 2


def test_storage_errors_other_failures_pass_through() -> None:
    with pytest.raises(OSError, match="broken pipe") as error, storage_errors("/somewhere"):
        raise OSError(errno.EPIPE, "broken pipe")
    assert not isinstance(error.value, StorageError)


def test_run_lock_second_process_is_refused_and_a_killed_one_frees_it(tmp_path: Path) -> None:
    lock = (
        f"from pathlib import Path; from fusechat.storage.run_lock import run_lock\nrun_lock(Path({str(tmp_path)!r}))"
    )
    with (
        another_process_within(lock) as holder,
        pytest.raises(BusyError, match=f"process {holder}"),
        run_lock(tmp_path),
    ):
        pass
    with run_lock(tmp_path):
        pass


def full_disk(message: str, error: type[Exception], *, behind: Exception | None = None) -> None:
    if behind is None:
        raise error(message)
    try:
        raise behind
    except type(behind):
        raise error(message)  # noqa: B904


@pytest.mark.parametrize(
    ("message", "behind"),
    [
        ("Error while serializing: I/O error: No space left on device (os error 28)", None),
        ("Error while serializing: I/O error: Read-only file system (os error 30)", None),
        ("[enforce fail at inline_container.cc:668] . unexpected pos 704 vs 598", None),
        ("PytorchStreamWriter failed writing file data/0: file write failed", None),
        ("saving failed", OSError(errno.ENOSPC, "No space left on device")),
    ],
)
def test_storage_errors_full_disk_in_the_words_of_a_library(message: str, behind: Exception | None) -> None:
    kind = SafetensorError if "serializing" in message else RuntimeError
    with pytest.raises(StorageError, match="what is finished is kept"), storage_errors("/somewhere"):
        full_disk(message, kind, behind=behind)


def test_storage_errors_torch_says_so_itself_on_a_full_device() -> None:
    with pytest.raises(StorageError, match="/dev/full: cannot be written"), storage_errors("/dev/full"):
        torch.save(torch.zeros(100_000), "/dev/full")  # a device: nothing is ever put in its place


@pytest.mark.parametrize(
    "error", [SafetensorError("invalid header (os error 2)"), RuntimeError("shape mismatch"), ValueError("No space")]
)
def test_storage_errors_what_is_no_full_disk_passes_through(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, storage_errors("/somewhere"):
        raise error
    assert raised.value is error
