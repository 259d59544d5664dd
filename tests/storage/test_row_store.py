"""The row store: what is written is read back within the grid, marks decide, damage is seen."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from row_stores import STEP, fill, new_store, random_rows

from fusechat.errors import ArtifactError, ContractError, StorageError
from fusechat.storage.damage import find_damage
from fusechat.storage.row_arrays import COMMIT_ARRAY
from fusechat.storage.row_codec import decode_gaps, encode_gaps
from fusechat.storage.shard_layout import lay_out_shards


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(16, 4000))
def test_lay_out_shards_any_lengths_covers_each_dialogue_once_and_balances(
    lengths: list[int], shard_tokens: int
) -> None:
    num_tokens = np.array(lengths)
    layout = lay_out_shards(num_tokens, num_tokens - 1, shard_tokens)
    assert [d for shard in range(layout.num_shards) for d in layout.dialogues(shard)] == list(range(len(lengths)))
    totals = [num_tokens[layout.dialogues(shard)].sum() for shard in range(layout.num_shards)]
    assert max(totals) <= shard_tokens + max(lengths)
    assert all(layout.shard_of(d) == shard for shard in range(layout.num_shards) for d in layout.dialogues(shard))


def test_store_round_trip_is_within_half_a_step(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    assert store.layout.num_shards > 2
    for shard, rows in fill(store).items():
        read = store.read_shard(shard)
        store.contract.validate(read)
        np.testing.assert_array_equal(read["topk_ids"], rows["topk_ids"])
        assert np.exp(read["topk_logprobs"]).sum(axis=1).max() <= 1 + 1e-6
        assert np.abs(read["topk_logprobs"] - rows["topk_logprobs"]).max() <= STEP  # half a step, and that of the level
        np.testing.assert_allclose(read["label_logprob"], rows["label_logprob"], atol=1 / 2048 + 1e-6)
    assert store.missing_shards() == [] and find_damage(store) == []


def test_store_read_dialogue_equals_its_part_of_the_shard(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    fill(store)
    for shard in range(store.layout.num_shards):
        whole, first = store.read_shard(shard), store.layout.rows(shard).start
        for dialogue in store.layout.dialogues(shard):
            part = slice(*(store.layout.row_offsets[dialogue : dialogue + 2] - first))
            for name, values in store.read_dialogue(dialogue).items():
                np.testing.assert_array_equal(values, whole[name][part])


def test_store_without_commit_mark_counts_as_missing_and_is_written_again(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    fill(store, [0, 2])
    assert store.present_shards() == {0, 2}
    (tmp_path / "s" / COMMIT_ARRAY / "c" / "2").unlink()
    again = new_store(tmp_path / "s")
    assert again.missing_shards() == [shard for shard in range(store.layout.num_shards) if shard != 0]


def test_store_written_in_any_order_and_twice_has_the_same_bytes(tmp_path: Path) -> None:
    first, second = new_store(tmp_path / "a"), new_store(tmp_path / "b")
    fill(first)
    fill(second, list(range(second.layout.num_shards))[::-1])
    fill(second, [1])
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path / "b") for path in (tmp_path / "b").rglob("*") if path.is_file())
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_shard_of_rows_that_say_nothing_is_written(tmp_path: Path) -> None:
    """All of it is what Zarr takes for fill; nobody could lay such a source on these dialogues."""
    store = new_store(tmp_path / "s", artifact="aligned")
    rows = store.layout.rows(1)
    count = rows.stop - rows.start
    nothing = {
        "topk_ids": np.zeros((count, 4), np.uint16), "topk_logprobs": np.full((count, 4), -np.inf, np.float32),
        "label_logprob": np.full(count, np.nan, np.float32), "kind": np.zeros(count, np.uint8),
    }  # fmt: skip
    store.write_shard(1, nothing)
    assert store.present_shards() == {1}
    for name, values in store.read_shard(1).items():
        np.testing.assert_array_equal(values, nothing[name])


def test_store_of_another_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    new_store(tmp_path / "s")
    with pytest.raises(ArtifactError) as error:
        new_store(tmp_path / "s", settings={"model": "other"})
    assert "settings.model: 'm' -> 'other'" in str(error.value)


def test_store_opens_with_the_stock_zarr_package(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    rows = fill(store)
    group = zarr.open_group(str(tmp_path / "s"), mode="r")
    assert set(group.array_keys()) == {
        "topk_ids",
        "topk_logprobs",
        "label_logprob",
        "row_offsets",
        "shard_offsets",
        "shard_rows",
    }
    np.testing.assert_array_equal(group["topk_ids"][: len(rows[0]["topk_ids"])], rows[0]["topk_ids"])


def test_write_shard_wrong_arrays_are_refused(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    rows = store.layout.rows(0)
    good = random_rows(rows.stop - rows.start, 0)
    with pytest.raises(ContractError, match="expected uint16 or uint32"):
        store.write_shard(0, {**good, "topk_ids": good["topk_ids"].astype(np.int64)})
    with pytest.raises(ContractError, match="along rows"):
        store.write_shard(0, {**good, "label_logprob": good["label_logprob"][1:]})
    with pytest.raises(ContractError, match="descend"):
        store.write_shard(0, {**good, "topk_logprobs": good["topk_logprobs"][:, ::-1]})
    with pytest.raises(ContractError, match="mass is above 1"):
        store.write_shard(0, {**good, "topk_logprobs": good["topk_logprobs"] + 20})
    assert store.present_shards() == set()


@settings(deadline=None)
@given(
    st.lists(st.lists(st.floats(-60, 20, width=32), min_size=5, max_size=9), min_size=1, max_size=20).filter(
        lambda rows: len({len(row) for row in rows}) == 1
    ),
    st.integers(0, 2),
)
def test_gaps_any_rows_round_trip_within_a_step_and_keep_their_tail(logits: list[list[float]], padding: int) -> None:
    values = np.array(logits, dtype=np.float64)
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    logprobs = -np.sort(-values, axis=1)[:, :4].astype(np.float32)
    logprobs[:, 4 - padding :] = -np.inf
    decoded = decode_gaps(encode_gaps(logprobs, STEP), STEP).astype(np.float64)
    real = np.isfinite(logprobs)
    np.testing.assert_array_equal(np.isfinite(decoded), real)
    np.testing.assert_allclose(decoded[real], logprobs[real], atol=1.01 * STEP)
    tail, kept = 1 - np.exp(logprobs.astype(np.float64)).sum(axis=1), 1 - np.exp(decoded).sum(axis=1)
    assert kept.min() > -1e-6
    there = tail > 1e-5
    np.testing.assert_allclose(np.log(kept[there]), np.log(tail[there]), atol=STEP)


def test_gaps_one_hot_and_empty_rows_are_exact() -> None:
    rows = np.array([[0, -np.inf, -np.inf], [-np.inf] * 3, [np.log(0.5)] * 2 + [-np.inf]], np.float32)
    np.testing.assert_allclose(decode_gaps(encode_gaps(rows, STEP), STEP), rows, atol=1e-6)


def test_create_read_only_target_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new_store(tmp_path / "s")
    rows = store.layout.rows(0)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zarr.Array, "__setitem__", full)
    with pytest.raises(StorageError, match="No space left"):
        store.write_shard(0, random_rows(rows.stop - rows.start, 0))
