"""Tensors that are read a range of elements at a time, as float32, wherever they lie.

A range counts elements of the flattened tensor. Files are read, not mapped: one copy into memory that is used again costs
less than a page fault per few pages, and a file that is cut while it is read is an error, not the end of the process.
Knows nothing about methods.
"""

import math
import os
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fusechat.errors import ModelError

from ..compute import kernels

MERGEABLE = ("F64", "F32", "F16", "BF16")
"""safetensors dtypes that can be merged; tensors of others must be equal in all models."""
ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of an element, by safetensors dtype."""


class TensorSource(Protocol):
    """A tensor that can be read in ranges."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        """Write elements start..stop of the flattened tensor to `out`, float32 [stop - start]."""

    def read_ahead(self) -> None:
        """Ask the system to have the tensor in memory soon; returns at once."""


@dataclass(frozen=True)
class MemoryTensor:
    """A torch tensor on the CPU."""

    tensor: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @cached_property
    def _flat(self) -> Any:
        return self.tensor.detach().reshape(-1)

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        out[:] = self._flat[start:stop].float().numpy()

    def read_ahead(self) -> None:
        pass


class OpenFile:
    """A file that is open for reading until nothing refers to it any more."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self.num_bytes = os.fstat(self._descriptor).st_size

    def read(self, place: int, out: np.ndarray) -> None:
        """Fill `out`, uint8, with the bytes from `place` on. Safe to call from several threads.

        Raises:
            ModelError: the file ends before.
        """
        view = out.data
        while view:
            count = os.preadv(self._descriptor, [view], place)
            if count == 0:
                raise ModelError(f"{self.path}: cut while it was being read: it ends at byte {place}; fetch it again")
            view, place = view[count:], place + count

    def read_ahead(self, place: int, num_bytes: int) -> None:
        """Ask the system to have these bytes in its cache soon."""
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(self._descriptor, place, num_bytes, os.POSIX_FADV_WILLNEED)


@dataclass(frozen=True)
class FileTensor:
    """A tensor in a safetensors file."""

    name: str
    open_file: OpenFile
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """First byte of its data in the file."""

    @property
    def file(self) -> Path:
        return self.open_file.path

    @cached_property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * ITEM_BYTES[self.dtype]

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        widen(self.raw(start, stop), self.dtype, out)

    def raw(self, start: int, stop: int) -> np.ndarray:
        """The bytes of elements start..stop as they stand in the file: uint8."""
        out = np.empty((stop - start) * ITEM_BYTES[self.dtype], np.uint8)
        self.read_raw(start, out)
        return out

    def read_raw(self, start: int, out: np.ndarray) -> None:
        """Fill `out`, uint8, with the bytes of the elements from `start` on."""
        self.open_file.read(self.offset + start * ITEM_BYTES[self.dtype], out)

    def read_ahead(self) -> None:
        self.open_file.read_ahead(self.offset, self.num_bytes)


def widen(raw: np.ndarray, dtype: str, out: np.ndarray) -> None:
    """Bytes of a dtype -> float32."""
    values = raw.view({"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype])
    if dtype == "BF16":
        kernels.widen_bfloat16(values, out.view(np.uint32))
    else:
        out[:] = values


def narrow(values: np.ndarray, dtype: str, out: np.ndarray) -> None:
    """float32 -> bytes of a dtype, to nearest, ties to even. A float16 overflow becomes infinite."""
    if dtype == "BF16":
        kernels.narrow_bfloat16(values.view(np.uint32), out.view(np.uint16))
        return
    with np.errstate(over="ignore"):  # the caller tests for infinity and names the tensor
        out.view({"F64": np.float64, "F32": np.float32, "F16": np.float16}[dtype])[:] = values


def first_not_finite(raw: np.ndarray, dtype: str) -> int | None:
    """Index of the first NaN or infinity among bytes of a dtype, or None."""
    masks: dict[str, tuple[Any, int, int]] = {
        "BF16": (np.uint16, 0x7F80, 0x7FFF),
        "F16": (np.uint16, 0x7C00, 0x7FFF),
        "F32": (np.uint32, 0x7F800000, 0x7FFFFFFF),
        "F64": (np.uint64, 0x7FF0000000000000, 0x7FFFFFFFFFFFFFFF),
    }
    unsigned, exponent, magnitude = masks[dtype]
    bits = raw.view(unsigned)
    if kernels.largest_magnitude(bits, unsigned(magnitude)) < exponent:
        return None
    return int(np.argmax((bits & unsigned(magnitude)) >= exponent))
