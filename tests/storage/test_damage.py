"""Damaged stores: each kind of damage is named, repaired by making that shard again, and never read as fill."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from row_stores import fill, new_store

from fusechat.errors import ArtifactError
from fusechat.storage.artifact import RECORD_FILE
from fusechat.storage.damage import find_damage, repair
from fusechat.storage.row_arrays import COMMIT_ARRAY
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens import Tokens
from fusechat.storage.tokens_reader import TokensReader, read_tokens

ARRAYS = ("topk_ids", "topk_logprobs", COMMIT_ARRAY)


def harm(path: Path, damage: str) -> None:
    """Do one kind of damage to a file."""
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
        return
    if damage == "empty":
        data.clear()
    elif damage == "truncated":
        del data[len(data) // 2 :]
    elif damage == "cut":  # by less than the checksum of the shard's index
        del data[-2:]
    else:
        data[len(data) // 3] ^= 0x10
    path.write_bytes(bytes(data))


def object_of(folder: Path, array: str, shard: int) -> Path:
    path = folder / array / "c" / str(shard)
    return path / "0" if path.is_dir() else path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("damage", ["gone", "empty", "truncated", "cut", "flipped"])
def test_damaged_object_is_found_and_only_its_shard_made_again(tmp_path: Path, array: str, damage: str) -> None:
    store = new_store(tmp_path / "s")
    fill(store)
    whole = contents(tmp_path / "s")
    harm(object_of(tmp_path / "s", array, 1), damage)
    store = RowStore.open(str(tmp_path / "s"), "logprobs")
    if array == COMMIT_ARRAY and damage in ("gone", "empty"):  # no mark, no shard: the next run makes it anyway
        assert find_damage(store) == []
    else:
        assert [(found.shard, found.array) for found in find_damage(store)] == [(1, array)]
        with pytest.raises(ArtifactError, match=rf"shard 1: {array} is damaged .*--repair"):
            store.read_shard(1)
        assert repair(store, find_damage(store)) == [1]
    again = new_store(tmp_path / "s")
    assert again.missing_shards() == [1]
    fill(again, [1])
    assert contents(tmp_path / "s") == whole


def test_every_flipped_bit_of_an_object_is_noticed(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    fill(store)
    victim = object_of(tmp_path / "s", "topk_logprobs", 2)
    good = victim.read_bytes()
    for place in range(len(good)):
        victim.write_bytes(good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :])
        with pytest.raises(ArtifactError, match="shard 2"):
            store.read_array("topk_logprobs", 2)


def test_damaged_shard_stops_every_reader_but_no_other_shard(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    rows = fill(store)
    harm(object_of(tmp_path / "s", "topk_ids", 1), "flipped")
    np.testing.assert_array_equal(store.read_shard(0)["topk_ids"], rows[0]["topk_ids"])
    with pytest.raises(ArtifactError, match="shard 1"):
        store.read_dialogue(store.layout.dialogues(1)[0])
    with pytest.raises(ArtifactError, match="shard 1"):
        list(store.iter_shards())
    harm(object_of(tmp_path / "s", COMMIT_ARRAY, 2), "truncated")
    with pytest.raises(ArtifactError, match="shard 2"):
        store.label_logprobs(2)


@pytest.mark.parametrize("damage", ["gone", "empty", "truncated"])
@pytest.mark.parametrize("file", ["zarr.json", "topk_ids/zarr.json", "row_offsets/c/0", "shard_offsets/zarr.json"])
def test_damaged_description_is_made_anew_and_the_shards_are_kept(tmp_path: Path, file: str, damage: str) -> None:
    fill(new_store(tmp_path / "s"))
    whole = contents(tmp_path / "s")
    harm(tmp_path / "s" / file, damage)
    with pytest.raises(ArtifactError, match=r"description cannot be read|found no logprobs store"):
        RowStore.open(str(tmp_path / "s"), "logprobs")
    assert new_store(tmp_path / "s").missing_shards() == []
    assert contents(tmp_path / "s") == whole


@pytest.mark.parametrize("damage", ["gone", "empty", "truncated", "flipped"])
@pytest.mark.parametrize("array", ["token_ids", "is_scored", "offsets"])
def test_damaged_tokens_are_refused(tmp_path: Path, array: str, damage: str) -> None:
    marks = np.arange(10) % 2 == 1
    spans = np.zeros((10, 2), np.int32)
    Tokens.of_contents(np.arange(10, dtype=np.int32), marks, spans, np.array([0, 4, 10]), {"model": "m"}).write(
        str(tmp_path / "t")
    )
    harm(tmp_path / "t" / array / "c" / "0", damage)
    with pytest.raises(ArtifactError, match="delete this folder and run `fusechat tokenize`"):
        read_tokens(str(tmp_path / "t"))
    with pytest.raises(ArtifactError, match="delete this folder and run `fusechat tokenize`"):
        reader = TokensReader(str(tmp_path / "t"))
        reader.read(range(2))
        reader.layout(100)


def test_inspect_names_the_damage_repairs_it_and_ends_with_status_2(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    fill(new_store(folder))
    (folder / RECORD_FILE).write_text(
        json.dumps({"kind": "logprobs", "fingerprint": "f", "counts": {}, "seconds": 1}), encoding="utf-8"
    )
    harm(object_of(folder, "topk_ids", 1), "flipped")
    harm(object_of(folder, "topk_logprobs", 2), "gone")

    def inspect(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fusechat", "inspect", str(folder), *options]
        return subprocess.run(command, capture_output=True, text=True)

    plain = inspect()
    assert plain.returncode == 2 and "shard 1: topk_ids" in plain.stderr and "Traceback" not in plain.stderr
    checked = inspect("--verify")
    assert checked.returncode == 2 and "2 damaged objects" in checked.stderr and "--repair" in checked.stderr
    assert "shard 1: topk_ids" in checked.stderr and "shard 2: topk_logprobs: missing or empty" in checked.stderr
    mended = inspect("--repair")
    assert "taken away: shards [1, 2]" in mended.stdout, mended.stderr
    assert not (folder / RECORD_FILE).exists()
    assert new_store(folder).missing_shards() == [1, 2]
