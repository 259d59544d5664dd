"""What a merge method sees: one tensor of the base and of each target, cut into blocks.

A method is a function `method(group, *, parameters) -> BlockMerge`. It may first run over the blocks to collect what it
has to know about the whole tensor (`group.map`), and hands back a function that merges one block. Blocks have a fixed
size, and sums over them are added in their order: results depend neither on threads nor on how files are cut.
Knows nothing about methods or files.
"""

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from fusechat.errors import ConfigError

from .compute import kernels
from .files.tensors import FileTensor, TensorSource

BLOCK = 131_072
"""Elements of a block: enough that the calls around the compiled loops cost little, few enough for a third-level cache."""
KEPT_ELEMENTS = 2**22
"""Largest tensor that is read once and kept for all passes (per thread 96 MiB for a base and five targets in float32, 48
where all are bfloat16); of a larger one every pass reads its blocks again."""

Result = TypeVar("Result")
PerTarget = float | list[float] | dict[str, float]
"""A parameter that is one number for all targets, a list in their order, or a dict by their names."""


class Block:
    """Elements start..stop of one flattened tensor, read when they are first asked for.

    `base`, `targets` and `deltas` are what a method needs. A block gives `targets` or `deltas`: the deltas are made in
    the targets' place. The hot loops take `bits`, which saves writing everything in float32 first.
    """

    def __init__(self, group: "TensorGroup", index: int) -> None:
        self.index = index
        self.start = index * BLOCK
        self.stop = min(self.start + BLOCK, group.num_elements)
        self.mass: np.ndarray | None = None
        """float64 [n]: sum of |delta| that stood for election; set by methods that elect signs."""
        self.kept_mass: np.ndarray | None = None
        """float64 [n]: the part of it that won."""
        self._group = group
        self._subtracted = False

    @property
    def has_deltas(self) -> bool:
        """True once the deltas were asked for, and perhaps overwritten: then they are what is to be merged, not `bits`."""
        return self._subtracted

    @property
    def base(self) -> np.ndarray:
        """float32 [c]"""
        base: np.ndarray = self._values[0]
        return base

    @property
    def targets(self) -> np.ndarray:
        """float32 [n, c]"""
        assert not self._subtracted, "the deltas stand in the targets' place"
        return self._values[1:]

    @property
    def deltas(self) -> np.ndarray:
        """float32 [n, c]: target minus base. May be overwritten where the block is merged, not where sums are taken."""
        return self.base_and_deltas[1:]

    @property
    def base_and_deltas(self) -> np.ndarray:
        """float32 [n+1, c]"""
        if not self._subtracted:
            self._subtracted = True
            for row in self._values[1:]:
                np.subtract(row, self._values[0], out=row)
        return self._values

    @cached_property
    def squares(self) -> np.ndarray:
        """float64 [n]: sum of the squared deltas."""
        out = np.empty(len(self.bits) - 1)
        kernels.sums_of_squares(self.bits, out)
        return out

    @cached_property
    def bits(self) -> np.ndarray:
        """[n+1, c]: base and targets as they were read; uint16 (bfloat16) or uint32 (float32). Not to be overwritten."""
        return self._group.read(self.index, self.start, self.stop)

    @cached_property
    def _values(self) -> np.ndarray:
        """float32 [n+1, c]; a copy, which methods may overwrite."""
        if self.bits.dtype == np.uint32:
            return self.bits.view(np.float32).copy()
        values = np.empty(self.bits.shape, np.float32)
        kernels.widen_bfloat16(self.bits.reshape(-1), values.reshape(-1).view(np.uint32))
        return values


@dataclass(frozen=True)
class BlockMerge:
    """How one tensor is merged."""

    merge: Callable[[Block], np.ndarray]
    """Block -> merged float32 [c]; called once per block, possibly from several threads."""
    coefficients: Sequence[float] | np.ndarray | None = None
    """Coefficient of each target [n], for the report; None where a method has none."""


class Memory(threading.local):
    """Arrays of each thread, used again from tensor to tensor: fresh memory costs a page fault per 4 KiB."""

    def __init__(self) -> None:
        self._memory: dict[str, np.ndarray] = {}

    def take(self, purpose: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """An array of this thread; what was taken before for the same purpose is overwritten."""
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        memory = self._memory.get(purpose)
        if memory is None or memory.size < num_bytes:
            self._memory[purpose] = memory = np.empty(num_bytes, np.uint8)
        return memory[:num_bytes].view(dtype).reshape(shape)


@dataclass
class TensorGroup:
    """One tensor of the base and of n targets."""

    name: str
    base: TensorSource
    targets: list[TensorSource]
    target_names: list[str]
    map_blocks: Callable[..., Iterable[Any]] = map
    """`map`, or the `map` of a thread pool."""
    memory: Memory | None = None
    """What this tensor is kept in, where its arrays are dropped before the next tensor is merged in the same thread."""
    scope_mean_squares: np.ndarray | None = None
    """float64 [n]: mean squared delta over the tensor's layer or model, if the method's `granularity` asks for one."""
    _kept: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False)
    """Block index -> its bits."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @cached_property
    def sources(self) -> list[Any]:
        """The base, then the targets."""
        return [self.base, *self.targets]

    @cached_property
    def is_bfloat16(self) -> bool:
        """True if all models hold the tensor as plain bfloat16 in a file."""
        return all(isinstance(source, FileTensor) and source.dtype == "BF16" for source in self.sources)

    @cached_property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def num_blocks(self) -> int:
        return -(-self.num_elements // BLOCK)

    def map(self, function: Callable[[Block], Result]) -> list[Result]:
        """Run a function over all blocks, possibly in several threads; results in the order of the blocks."""

        return list(self.map_blocks(lambda index: function(Block(self, index)), range(self.num_blocks)))

    @property
    def is_kept(self) -> bool:
        """True if the tensor is read once, for all passes."""
        return self.num_elements <= KEPT_ELEMENTS

    def allocate(self, purpose: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """An array that lives as long as the tensor is merged; one per purpose."""
        return np.empty(shape, dtype) if self.memory is None else self.memory.take(purpose, shape, dtype)

    def read(self, index: int, start: int, stop: int) -> np.ndarray:
        """The bits of a block, see `Block.bits`."""
        if index in self._kept:
            return self._kept[index]
        dtype = np.uint16 if self.is_bfloat16 else np.uint32
        count = len(self.sources)
        if self.is_kept:
            bits = self._room[count * start : count * stop].reshape(count, stop - start)
        else:  # a thread has one block in hand at a time
            bits = self.allocate("block", (count, stop - start), dtype)
        for source, row in zip(self.sources, bits, strict=True):
            if self.is_bfloat16:
                source.read_raw(start, row.view(np.uint8))
            else:
                source.read(start, stop, row.view(np.float32))
        if self.is_kept:
            self._kept[index] = bits
        return bits

    @cached_property
    def _room(self) -> np.ndarray:
        """All kept blocks, one after the other."""
        dtype = np.uint16 if self.is_bfloat16 else np.uint32
        return self.allocate("bits", (len(self.sources) * self.num_elements,), dtype)

    def mean_squares(self) -> np.ndarray:
        """float64 [n]: mean squared delta of each target over the tensor."""
        squares: np.ndarray = np.sum(self.map(lambda block: block.squares), axis=0)
        return squares / max(self.num_elements, 1)

    def per_target(self, value: PerTarget | None, *, parameter: str, default: float) -> np.ndarray:
        """float64 [n] from one number, a list in the targets' order, or a dict by their names.

        Raises:
            ConfigError: a list of another length, or names that are not the targets'.
        """
        names = self.target_names
        if value is None or isinstance(value, int | float):
            return np.full(len(names), default if value is None else value, np.float64)
        if isinstance(value, Mapping):
            if set(value) != set(names):
                raise ConfigError(
                    f"merge.parameters.{parameter}: found names {sorted(value)}, expected the targets {sorted(names)}"
                )
            value = [value[name] for name in names]
        if len(value) != len(names):
            raise ConfigError(
                f"merge.parameters.{parameter}: found {len(value)} numbers, expected one for each of {len(names)} targets"
            )
        return np.array(value, np.float64)


def normalised(values: np.ndarray) -> np.ndarray:
    """Divide by the sum; equal shares where the sum is exactly 0.

    The guard has no scale: multiplying all deltas by the same factor, however small, changes no coefficient. (A fixed
    bound such as mergekit's 1e-6 turns coefficients into equal shares at the learning rates of fine-tuning.)
    """
    total = values.sum()
    return values / total if total > 0 else np.full(len(values), 1 / len(values))
