"""From the stores to a batch: joining, truncation, packing, the order of batches."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import trainer_runs

from fusechat.config import RunConfig
from fusechat.errors import ConfigError
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens import Tokens
from fusechat.storage.tokens_reader import TokensReader, read_tokens
from trainer.batches import EMPTY_UNIT, BatchOrder
from trainer.collator import FusionCollator
from trainer.fusion_dataset import FusionDataset, Teachers
from trainer.units import pack


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return trainer_runs.make_run(tmp_path_factory.mktemp("data"))


def dataset(config: RunConfig, *, max_tokens: int = 64, choice: str = "min_ce") -> FusionDataset:
    return FusionDataset(
        TokensReader(config.tokens_url("pivot")),
        choice=choice,  # type: ignore[arg-type]
        max_tokens=max_tokens,
        pivot_rows=RowStore.open(config.logprobs_url("pivot"), "logprobs"),
        source_rows=RowStore.open(config.aligned_url("other"), "aligned"),
        source_own_rows=RowStore.open(config.logprobs_url("other"), "logprobs"),
    )


def test_example_rows_are_those_of_its_dialogue(config: RunConfig) -> None:
    data, tokens = dataset(config, choice="pivot"), read_tokens(config.tokens_url("pivot"))
    store = RowStore.open(config.logprobs_url("pivot"), "logprobs")
    everything = np.concatenate([arrays["topk_ids"] for _, arrays in store.iter_shards()])
    for dialogue in range(len(data)):
        example = data.read(dialogue)
        rows = slice(*tokens.row_offsets[dialogue : dialogue + 2])
        assert np.array_equal(example.supervision.topk_ids, everything[rows])
        where = tokens.tokens_of(dialogue)
        assert np.array_equal(example.positions, np.flatnonzero(tokens.is_scored[where]))


@pytest.mark.parametrize("choice", ["min_ce", "min_ce_released", "min_ce_token", "average", "source", "pivot", "none"])
def test_truncation_drops_tokens_and_rows_together(config: RunConfig, choice: str) -> None:
    whole, cut = dataset(config, choice=choice), dataset(config, max_tokens=20, choice=choice)
    for dialogue in range(len(whole)):
        full, short = whole.read(dialogue), cut.read(dialogue)
        kept = int((full.positions < 20).sum())
        assert len(short.token_ids) == min(len(full.token_ids), 20)
        assert np.array_equal(short.positions, full.positions[:kept])
        assert np.array_equal(short.supervision.topk_ids, full.supervision.topk_ids[:kept])
        assert np.array_equal(short.supervision.topk_logprobs, full.supervision.topk_logprobs[:kept])


def test_dialogue_whose_targets_are_cut_away_is_not_trained_on(config: RunConfig) -> None:
    data = dataset(config, max_tokens=7)
    expected = [d for d in range(len(data)) if len(data.read(d).positions)]
    assert data.trainable().tolist() == expected
    assert 0 < len(expected) < len(data)


def test_target_token_at_the_head_is_predicted_from_nothing_and_left_out(config: RunConfig, tmp_path: Path) -> None:
    tokens = read_tokens(config.tokens_url("pivot"))
    everywhere = Tokens.of_contents(tokens.token_ids, np.ones_like(tokens.is_scored), tokens.span, tokens.offsets, {})
    everywhere.write(str(tmp_path))
    data = FusionDataset(TokensReader(str(tmp_path)), choice="none", max_tokens=64)
    assert data.read(0).positions.tolist() == list(range(1, len(data.read(0).token_ids)))


def test_students_own_answers_teach_by_rows_alone_and_only_where_they_have_a_teacher(config: RunConfig) -> None:
    tokens, reader = read_tokens(config.tokens_url("pivot")), TokensReader(config.tokens_url("pivot"))
    numbers = np.arange(tokens.num_dialogues)
    teachers = Teachers(
        [RowStore.open(config.aligned_url("other"), "aligned")], np.where(numbers % 3 == 0, -1, 0),
        np.full(len(numbers), 0.5), is_own=numbers >= 11,
    )  # fmt: skip
    data = FusionDataset(reader, choice="trusted", max_tokens=64, teachers=teachers)
    untaught = {d for d in numbers.tolist() if d >= 11 and d % 3 == 0}
    assert set(numbers.tolist()) - set(data.trainable().tolist()) == untaught
    collate = FusionCollator(data, [np.array([d]) for d in numbers], pad_token_id=1, fusion_weight=0.9)
    dropped = 0
    for dialogue in data.trainable().tolist():
        fusion = collate([{"unit": dialogue}])["fusion"]
        scored = int(np.diff(tokens.row_offsets)[dialogue])
        has_row = torch.isfinite(fusion["topk_logprobs"]).any(1)
        if dialogue >= 11:
            assert has_row.all() and fusion["label_weights"].eq(0).all() and fusion["row_weights"].eq(0.5).all()
            dropped += scored - len(fusion["labels"])
        else:
            expected = 1 - torch.where(has_row, fusion["row_weights"], 0)
            assert len(fusion["labels"]) == scored and torch.equal(fusion["label_weights"], expected)
    assert dropped > 0  # tokens on which the source could not be laid
    assert (
        "label_weights" not in FusionCollator(dataset(config), [np.array([0])], pad_token_id=1)([{"unit": 0}])["fusion"]
    )


def test_collator_hidden_state_stands_before_its_label(config: RunConfig) -> None:
    data = dataset(config)
    collate = FusionCollator(data, [np.array([d]) for d in range(len(data))], pad_token_id=1, pad_to_multiple_of=8)
    batch = collate([{"unit": 4}, {"unit": 9}, {"unit": EMPTY_UNIT}])
    ids, fusion = batch["input_ids"], batch["fusion"]
    assert ids.shape[1] % 8 == 0
    assert torch.equal(ids.flatten()[fusion["hidden_index"] + 1], fusion["labels"])
    assert batch["attention_mask"].sum(1).tolist() == [*data.tokens.lengths[[4, 9]], 0]
    first, second = data.read(4), data.read(9)
    assert fusion["dialogues"].tolist() == [4, 9]
    assert np.array_equal(fusion["topk_ids"], np.concatenate([first.supervision.topk_ids, second.supervision.topk_ids]))
    assert fusion["hidden_index"].tolist() == [*(first.positions - 1), *(ids.shape[1] + second.positions - 1)]


def test_collator_counts_dialogues_without_source(config: RunConfig) -> None:
    collate = FusionCollator(dataset(config), [np.array([3]), np.array([4])], pad_token_id=1)
    batch = collate([{"unit": 0}, {"unit": 1}])
    assert int(batch["fusion"]["without_source"]) == 1
    rows = len(dataset(config).read(3).positions)
    assert not torch.isfinite(batch["fusion"]["topk_logprobs"][:rows]).any()
    assert torch.isfinite(batch["fusion"]["topk_logprobs"][rows:]).any(1).all()


@pytest.mark.parametrize("flat", [False, True])
def test_packed_batch_marks_borders_by_positions(config: RunConfig, flat: bool) -> None:
    data = dataset(config)
    packs = pack(data.trainable(), data.lengths(), 64)
    collate = FusionCollator(data, packs, pad_token_id=1, packed=True, flat=flat)
    batch = collate([{"unit": 0}, {"unit": 1}])
    assert "attention_mask" not in batch
    assert batch["input_ids"].shape[0] == (1 if flat else 2)
    starts = (batch["position_ids"] == 0).sum()
    padded = 0 if flat else sum(data.lengths()[p].sum() < batch["input_ids"].shape[1] for p in packs[:2])
    assert int(starts) == len(packs[0]) + len(packs[1]) + padded
    labels = batch["input_ids"].flatten()[batch["fusion"]["hidden_index"] + 1]
    assert torch.equal(labels, batch["fusion"]["labels"])


def test_pack_holds_every_dialogue_once_within_the_limit() -> None:
    lengths = np.random.default_rng(0).integers(1, 65, 300)
    packs = pack(np.arange(300), lengths, 64)
    assert sorted(np.concatenate(packs).tolist()) == list(range(300))
    filled = np.array([lengths[members].sum() for members in packs])
    assert filled.max() <= 64
    assert filled.mean() > 0.95 * 64


def order(lengths: np.ndarray, **changes: object) -> BatchOrder:
    arguments = {
        "global_batch": 8, "seed": 1, "strategy": "group_by_length", "fill_to": 8, "drop_last": False, "epoch": lambda: 0,
    }  # fmt: skip
    return BatchOrder(lengths, **{**arguments, **changes})  # type: ignore[arg-type]


LENGTHS = np.random.default_rng(5).integers(1, 500, 1003)


@pytest.mark.parametrize("strategy", ["group_by_length", "random", "sequential"])
def test_batch_order_visits_every_unit_once_and_fills_the_last_batch(strategy: str) -> None:
    units = list(order(LENGTHS, strategy=strategy))
    assert len(units) == len(order(LENGTHS)) == 1008
    assert units[1003:] == [EMPTY_UNIT] * 5
    assert sorted(units[:1003]) == list(range(1003))


def test_batch_order_drop_last_cuts_the_last_batch() -> None:
    units = list(order(LENGTHS, drop_last=True))
    assert len(units) == 1000 and EMPTY_UNIT not in units


def test_batch_order_depends_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(0)
    first = list(order(LENGTHS))
    torch.manual_seed(99)
    assert list(order(LENGTHS)) == first
    assert list(order(LENGTHS, epoch=lambda: 1)) != first
    assert list(order(LENGTHS, seed=2)) != first


def test_batch_order_groups_lengths_without_sorting_the_epoch() -> None:
    grouped = LENGTHS[np.array(list(order(LENGTHS))[:1000])].reshape(-1, 8)
    random = LENGTHS[np.array(list(order(LENGTHS, strategy="random"))[:1000])].reshape(-1, 8)
    padding = [1 - batches.sum() / (8 * batches.max(1)).sum() for batches in (grouped, random)]
    assert padding[0] < 0.1 < padding[1]
    assert np.abs(np.corrcoef(grouped.mean(1), np.arange(125))[0, 1]) < 0.3


@pytest.mark.parametrize("batches", [1, 8, 19, 49])
def test_batch_order_of_a_small_set_mixes_lengths(batches: int) -> None:
    """A batch's spread of lengths stays near that of the set, and its dialogues meet others in the next epoch."""
    lengths = np.arange(8 * batches) + 1
    epochs = [np.array(list(order(lengths, epoch=lambda number=number: number))).reshape(-1, 8) for number in (0, 1)]
    spread = lengths[epochs[0]].std(axis=1).mean() / lengths.std()
    assert spread > (0.5 if batches < 20 else 0.2)
    if batches > 1:
        pairs = [{frozenset(pair) for batch in epoch.tolist() for pair in combinations(batch, 2)} for epoch in epochs]
        assert len(pairs[0] & pairs[1]) < 0.5 * len(pairs[0])


def test_batch_order_refuses_strategies_it_does_not_have() -> None:
    with pytest.raises(ConfigError, match="batch_rebalance"):
        order(LENGTHS, strategy="batch_rebalance")
