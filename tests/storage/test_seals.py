"""Finished artifacts whose files are no longer as their stage left them are refused, named, repaired and made again."""

import json
import os
from pathlib import Path

import pytest
from row_stores import fill, new_store

from fusechat.app.inspection import show_artifact
from fusechat.errors import ArtifactError
from fusechat.storage import artifact
from fusechat.storage.artifact import LEASE_FILE, RECIPE_FILE, RECORD_FILE, Artifact, Claim
from fusechat.storage.damage import check_finished, find_damage
from fusechat.storage.row_arrays import COMMIT_ARRAY
from fusechat.storage.seals import is_whole, sealed


def made(folder: Path, **parents: Artifact) -> Artifact:
    """A finished artifact of two files."""
    claim = claim_of(folder, **parents)
    (folder / "inner").mkdir(exist_ok=True)
    (folder / "weights").write_bytes(b"0123456789")
    (folder / "inner" / "page.json").write_text("{}")
    return claim.finish({"files": 2})


def claim_of(folder: Path, **parents: Artifact) -> Claim:
    return artifact.claim(folder, "target", settings={"a": 1}, parents=parents)


HARMS = {
    "flipped": lambda path: path.write_bytes(b"0123456799"),
    "cut": lambda path: path.write_bytes(b"01234"),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("harm", HARMS)
def test_damaged_file_of_a_finished_artifact_is_refused_and_made_again(
    tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a"
    made(folder)
    HARMS[harm](folder / "weights")
    for use in (lambda: artifact.load(folder, "target"), lambda: claim_of(folder)):
        with pytest.raises(
            ArtifactError, match=r"weights .*; run `fusechat inspect .*/a --repair`, then start the same command"
        ):
            use()
    with pytest.raises(ArtifactError, match=r"1 damaged files:\n  weights"):
        show_artifact(str(folder), dialogue=0, num_rows=1, verify=True)
    show_artifact(str(folder), dialogue=0, num_rows=1, verify=False, repair=True)
    assert "taken away" in capsys.readouterr().out
    assert not (folder / RECORD_FILE).exists() and not (folder / "weights").exists()
    assert claim_of(folder).artifact is None
    made(folder)
    assert artifact.load(folder, "target")


def test_rot_that_leaves_the_time_alone_takes_verify(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    made(folder)
    status = (folder / "weights").stat()
    (folder / "weights").write_bytes(b"0123456799")
    os.utime(folder / "weights", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert artifact.load(folder, "target")  # looking through all weights before every stage would take too long
    with pytest.raises(ArtifactError, match="holds other bytes than were written"):
        show_artifact(str(folder), dialogue=0, num_rows=1, verify=True)


def test_files_that_were_copied_or_touched_are_looked_through_and_taken(tmp_path: Path) -> None:
    made(tmp_path / "a")
    (tmp_path / "a" / "weights").touch()
    assert artifact.load(tmp_path / "a", "target")


def test_card_and_lease_may_change(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    made(folder)
    (folder / "README.md").write_text("figures")
    (folder / LEASE_FILE).write_text("{}")
    assert artifact.load(folder, "target")


def test_parent_that_changes_while_it_is_read_stops_the_stage(tmp_path: Path) -> None:
    parent = made(tmp_path / "parent")
    claim = claim_of(tmp_path / "child", parent=parent)
    (tmp_path / "parent" / "weights").unlink()
    with pytest.raises(ArtifactError, match="parent: damaged since it was finished: weights missing"):
        claim.finish({})
    assert not (tmp_path / "child" / RECORD_FILE).exists()


@pytest.mark.parametrize("name", [RECORD_FILE, RECIPE_FILE])
def test_changed_record_is_no_other_recipe(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "a"
    made(folder)
    text = (folder / name).read_text()
    (folder / name).write_text(text.replace('"a": 1', '"a": 3'))
    if name == RECORD_FILE:
        with pytest.raises(ArtifactError, match=r"changed since it was written .*; delete this file"):
            claim_of(folder)
        return
    assert claim_of(folder).artifact is not None
    assert (folder / name).read_text() == text  # the record says the same, so it is written again


def test_records_of_earlier_versions_are_taken_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    made(folder)
    record = json.loads((folder / RECORD_FILE).read_text())
    plain = {key: value for key, value in record.items() if key not in ("seal", "files")}
    (folder / RECORD_FILE).write_text(json.dumps(plain))
    (folder / "weights").unlink()
    assert claim_of(folder).artifact is not None


def test_finish_takes_away_what_killed_writers_left(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    claim = claim_of(folder)
    (folder / "zarr.json.0123.partial").write_bytes(b"half")
    beat = folder / f"{LEASE_FILE}.0123.partial"  # of a living driver
    beat.write_bytes(b"half")
    claim.finish({})
    assert not (folder / "zarr.json.0123.partial").exists() and beat.exists()


def test_seal_holds_for_the_same_content_only() -> None:
    document = sealed({"b": [1, 2.5, "é"], "a": {"deep": None}})
    assert is_whole(json.loads(json.dumps(document))) and is_whole({"without": "a seal"})
    assert not is_whole({**document, "b": [1, 2.5]}) and not is_whole([document])


@pytest.mark.parametrize("array", ["topk_ids", COMMIT_ARRAY])
def test_object_that_is_gone_from_a_finished_store_is_damage(tmp_path: Path, array: str) -> None:
    store = new_store(tmp_path)
    fill(store)
    (tmp_path / RECORD_FILE).write_text('{"kind": "logprobs"}')
    check_finished(store)
    Path(store.object_url(array, 1)).unlink()
    with pytest.raises(ArtifactError, match=rf"shard 1: {array}: missing or empty; run `fusechat inspect .* --repair`"):
        check_finished(store)
    assert [(damage.shard, damage.array) for damage in find_damage(store)] == [(1, array)]
