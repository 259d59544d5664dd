"""The order of training: which units make up which batch of which epoch.

In: the tokens of each unit, the global batch, a seed. Out: unit numbers. The order depends on nothing else, neither on
how many processes share a global batch nor on the state of any random generator, so that a resumed run and a run on
more processes train on the same batches.
"""

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler

from fusechat.errors import ConfigError

EMPTY_UNIT = -1
"""A unit without tokens: fills the last batch, so that every process has one more and none trains on a dialogue twice."""
GROUPED_BATCHES = 50
"""Global batches that are sorted by length together at most; more would let long dialogues cluster, fewer would pad more."""
GROUPED_SHARE = 10
"""What is sorted together is at most this part of the set. A small set sorted as a whole would put near-equal dialogues
into one batch in every epoch, and the same ones each time."""


class BatchOrder(Sampler[int]):
    """Yields unit numbers; consecutive runs of `global_batch` are one step."""

    def __init__(
        self, lengths: np.ndarray, *, global_batch: int, seed: int, strategy: str, fill_to: int, drop_last: bool,
        epoch: Callable[[], int],
    ) -> None:  # fmt: skip
        """
        Args:
            lengths: int [units], tokens of each unit.
            global_batch: units of one optimizer step, over all processes and accumulation steps.
            strategy: `group_by_length`, `random` or `sequential`.
            fill_to: the epoch is filled with empty units to a multiple of this, or cut to one with `drop_last`.
            epoch: says which epoch begins now.
        """
        self._lengths, self._global_batch, self._seed, self._strategy = lengths, global_batch, seed, strategy
        self._epoch = epoch
        units = len(lengths)
        self._num_units = units // fill_to * fill_to if drop_last else -(-units // fill_to) * fill_to
        if strategy not in ("group_by_length", "random", "sequential"):
            raise ConfigError(
                f"training.trl.train_sampling_strategy: found {strategy!r}, expected group_by_length (which also balances "
                "processes), random or sequential"
            )
        if self._num_units == 0:
            raise ConfigError(
                f"training.trl.dataloader_drop_last: {units} units fill no batch of {fill_to}; lower the batch"
            )

    def __len__(self) -> int:
        return self._num_units

    def __iter__(self) -> Iterator[int]:
        order = self.epoch_order(self._epoch())[: self._num_units]
        for start in range(0, len(order), 4096):  # as Python's numbers a million units take 40 MB
            yield from order[start : start + 4096].tolist()
        yield from [EMPTY_UNIT] * (self._num_units - len(order))

    def epoch_order(self, epoch: int) -> np.ndarray:
        """int32 [units]: all units in the order of one epoch."""
        order = np.arange(len(self._lengths), dtype=np.int32)
        if self._strategy == "sequential":
            return order
        random = np.random.default_rng([self._seed, epoch])
        random.shuffle(order)
        if self._strategy == "random":
            return order
        batches_of_set = len(order) // self._global_batch
        span = self._global_batch * max(1, min(GROUPED_BATCHES, batches_of_set // GROUPED_SHARE))
        for start in range(0, len(order), span):  # in place: a set has many units
            piece = order[start : start + span]
            piece[:] = piece[np.argsort(-self._lengths[piece], kind="stable")]
        full = len(order) // self._global_batch
        batches = order[: full * self._global_batch].reshape(full, self._global_batch)
        batches[:] = batches[random.permutation(full)]
        return order
