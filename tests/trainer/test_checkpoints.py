"""A checkpoint that is not as it was written is never gone on from."""

from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.checkpoints import STAGING, SUMS_FILE, last_checkpoint, publish, remove_damaged


def write(output: Path, step: int) -> Path:
    folder = output / STAGING / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(b"moments of step %d" % step)
    (folder / "model.safetensors").write_bytes(b"weights")
    publish(output, step)
    return output / folder.name


HARMS: dict[str, Callable[[Path], object]] = {
    "flipped": lambda folder: (folder / "optimizer.pt").write_bytes(b"moments of step 9"),
    "cut": lambda folder: (folder / "model.safetensors").write_bytes(b"weig"),
    "deleted": lambda folder: (folder / "model.safetensors").unlink(),
    "its sums changed": lambda folder: (folder / SUMS_FILE).write_text('{"files": {}, "seal": "0"}'),
    "its sums cut": lambda folder: (folder / SUMS_FILE).write_text('{"files":'),
}


@pytest.mark.parametrize("name", HARMS)
def test_damaged_checkpoint_is_deleted_and_an_older_one_taken(tmp_path: Path, name: str) -> None:
    older, newer = write(tmp_path, 4), write(tmp_path, 8)
    assert remove_damaged(tmp_path) == [] and last_checkpoint(tmp_path) == newer
    HARMS[name](newer)
    assert remove_damaged(tmp_path) == ["checkpoint-8"]
    assert last_checkpoint(tmp_path) == older and not newer.exists()


def test_checkpoint_of_an_earlier_version_has_no_sums_and_is_taken(tmp_path: Path) -> None:
    folder = write(tmp_path, 4)
    (folder / SUMS_FILE).unlink()
    assert remove_damaged(tmp_path) == [] and last_checkpoint(tmp_path) == folder
