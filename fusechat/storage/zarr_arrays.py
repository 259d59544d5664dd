"""Plain arrays of a Zarr group: short ones that are read whole, long ones that are written and read by range.

A long array lies in objects of `OBJECT_LENGTH` elements, each cut into chunks of `CHUNK_LENGTH`, so that one dialogue is
read without the million tokens around it. Zarr reads a missing object as fill; here that is damage.
"""

from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from .files import has_bytes

ATTRIBUTE = "fusechat"
"""The group's attribute that holds all of ours."""
DAMAGE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
    RuntimeError,
)
"""What Zarr and numpy raise where a description is not what it should be: they check little of it beforehand."""
CHUNK_LENGTH = 8192
"""Elements of a long array that are decoded together."""
OBJECT_LENGTH = 1 << 20
"""Elements of a long array in one object."""


def write_array(group: zarr.Group, name: str, values: np.ndarray, fill_value: Any = 0) -> None:
    """Write one short array whole, in place of what was there."""
    chunks = tuple(max(1, min(length, 1 << 20)) for length in values.shape)
    array = group.create_array(
        name, shape=values.shape, dtype=values.dtype, chunks=chunks, compressors=[ZstdCodec(level=3), Crc32cCodec()],
        fill_value=fill_value, overwrite=True, config={"write_empty_chunks": True},
    )  # fmt: skip
    array[...] = values


def create_long_array(
    group: zarr.Group, name: str, shape: tuple[int, ...], dtype: Any, fill_value: Any = 0, *, axis: int = 0
) -> Any:
    """Make a long array, in place of what was there; whole objects of it may be written by different processes.

    Args:
        axis: the long one.
    """
    chunk = max(1, min(shape[axis], CHUNK_LENGTH))
    in_object = min(-(-max(shape[axis], 1) // chunk) * chunk, OBJECT_LENGTH)
    chunks, objects = (
        tuple(cut if place == axis else length for place, length in enumerate(shape)) for cut in (chunk, in_object)
    )
    return group.create_array(
        name, shape=shape, dtype=dtype, chunks=chunks, shards=objects,
        compressors=[ZstdCodec(level=3), Crc32cCodec()], fill_value=fill_value, overwrite=True,
        config={"write_empty_chunks": True},
    )  # fmt: skip


def writable(group: zarr.Group, name: str) -> Any:
    """An array of an opened group for writing. What is all fill is written too: a missing object means a missing shard, and
    Zarr keeps no such setting with the array.
    """
    array: Any = group[name]
    return array.with_config({"write_empty_chunks": True})


class LongArray:
    """A long array that is read by range; an object that is missing or empty, which Zarr would read as fill, is refused.

    Raises:
        KeyError: the group has none of this name.
    """

    def __init__(self, url: str, group: zarr.Group, name: str) -> None:
        self._url, self._name = url, name
        array: Any = group[name]
        self._array = array
        self.shape: tuple[int, ...] = array.shape
        self.dtype: np.dtype[Any] = array.dtype
        self._in_object = int((array.shards or array.chunks)[0])
        self._seen: set[int] = set()
        """Objects that are known to be there."""

    def __getitem__(self, wanted: slice | int) -> np.ndarray:
        """Consecutive elements along the first axis, or one.

        Raises:
            ValueError: objects are missing, or fail their checksum.
        """
        if isinstance(wanted, slice):
            start, stop, _ = wanted.indices(self.shape[0])
        else:
            start = range(self.shape[0])[wanted]
            stop = start + 1
        for number in range(start // self._in_object, -(-stop // self._in_object)):
            if number not in self._seen and start < stop:
                self._check(number)
        values = np.asarray(self._array[start:stop])
        return values if isinstance(wanted, slice) else values[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def _check(self, number: int) -> None:
        key = self._array.metadata.encode_chunk_key((number, *(0 for _ in self.shape[1:])))
        if not has_bytes(f"{self._url}/{self._name}/{key}"):
            raise ValueError(f"object {number} of {self._name} is missing or empty")
        self._seen.add(number)


class LongWriter:
    """Fills a long array along its last axis, whole objects at a time: `add` values, then leave the `with` block."""

    def __init__(self, array: Any) -> None:
        self._array, self._position = array, 0
        self._waiting: list[np.ndarray] = []

    def __enter__(self) -> "LongWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._write(self._num_waiting)

    def add(self, values: np.ndarray) -> None:
        """Put values behind those that were added before."""
        self._waiting.append(values)
        if self._num_waiting >= OBJECT_LENGTH:
            self._write(self._num_waiting // OBJECT_LENGTH * OBJECT_LENGTH)

    @property
    def _num_waiting(self) -> int:
        return sum(values.shape[-1] for values in self._waiting)

    def _write(self, count: int) -> None:
        if count:
            values = np.concatenate(self._waiting, axis=-1)
            self._array[..., self._position : self._position + count] = values[..., :count]
            self._position += count
            self._waiting = [values[..., count:].copy()]


def read_array(group: zarr.Group, name: str) -> np.ndarray:
    """Read one array whole.

    Raises:
        ValueError: objects of it are missing, or fail their checksum.
    """
    return np.asarray(whole_array(group, name)[...])


def whole_array(group: zarr.Group, name: str) -> Any:
    """An array of which every object is there.

    Raises:
        ValueError: objects of it are missing.
    """
    array: Any = group[name]
    in_object = array.shards or array.chunks
    objects = int(np.prod([-(-length // size) for length, size in zip(array.shape, in_object, strict=True)]))
    # Zarr counts the chunks of each object that is there, those beyond the array's end included.
    chunks_in_object = int(np.prod([a // b for a, b in zip(in_object, array.chunks, strict=True)]))
    if missing := objects - array.nchunks_initialized // chunks_in_object:
        raise ValueError(f"{missing} of the {objects} objects of {name} are missing")
    return array


def ranges(length: int, size: int = OBJECT_LENGTH) -> Iterator[range]:
    """0 to `length` in consecutive ranges of at most `size`."""
    for start in range(0, length, size):
        yield range(start, min(start + size, length))
