"""Nats of target tokens from a store of rows, beside the obvious sums."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from row_stores import fill, new_store

from evaluation.held_out_loss import dialogue_nats
from fusechat.errors import ModelError
from fusechat.storage.row_store import RowStore


def ids_of(store: RowStore) -> list[str]:
    return [f"d{number}" for number in range(store.layout.num_dialogues)]


def lengths_of(store: RowStore) -> np.ndarray:
    return np.full(store.layout.num_dialogues, 5)


def test_dialogue_nats_are_the_sums_over_each_dialogues_rows(tmp_path: Path) -> None:
    store = new_store(tmp_path / "rows")
    written = fill(store)
    assert store.layout.num_shards > 2
    labels = np.concatenate([arrays["label_logprob"] for _, arrays in sorted(written.items())]).astype(np.float64)
    offsets = store.row_offsets_of(range(store.layout.num_dialogues))
    expected = [-labels[first:last].sum() for first, last in itertools.pairwise(offsets)]
    nats = dialogue_nats(store, lengths_of(store), label="tiny", dialogue_ids=ids_of(store))
    np.testing.assert_allclose(nats, expected, atol=np.diff(offsets).max() / 2048)  # labels lie on a grid of 1/1024


def test_dialogue_that_was_set_aside_has_no_loss(tmp_path: Path) -> None:
    store = new_store(tmp_path / "rows")
    fill(store)
    lengths = lengths_of(store)
    lengths[[2, 17]] = 0
    nats = dialogue_nats(store, lengths, label="tiny", dialogue_ids=ids_of(store))
    assert np.flatnonzero(np.isnan(nats)).tolist() == [2, 17]


def test_dialogue_nats_not_a_number_names_model_and_dialogue(tmp_path: Path) -> None:
    store = new_store(tmp_path / "rows")
    shard, written = store.layout.num_shards - 1, fill(store)
    arrays = written[shard]
    dialogue = int(store.layout.shard_offsets[shard]) + 1
    row = int(store.row_offsets_of(range(dialogue, dialogue + 1))[0]) - store.layout.rows(shard).start
    arrays["label_logprob"][row] = np.nan
    store.write_shard(shard, arrays)
    with pytest.raises(ModelError, match=rf"tiny: its loss of held-out dialogue 'd{dialogue}' is nan.*float32"):
        dialogue_nats(store, lengths_of(store), label="tiny", dialogue_ids=ids_of(store))
