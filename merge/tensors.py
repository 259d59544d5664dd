"""Tensors that are read a range of elements at a time, as float32, wherever they lie.

A range counts elements of the flattened tensor. Files are mapped, so that bytes are not copied before they are widened,
and pages are released after use, so that they do not count as memory of this process. Knows nothing about methods.
"""

import math
import mmap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from . import kernels

MERGEABLE = ("F64", "F32", "F16", "BF16")
"""safetensors dtypes that can be merged; tensors of others must be equal in all models."""
ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of an element, by safetensors dtype."""

PAGES = 65_536
"""Bytes that the system maps at once around a page that is touched; what is released must be cut at these places."""


class TensorSource(Protocol):
    """A tensor that can be read in ranges."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        """Write elements start..stop of the flattened tensor to `out`, float32 [stop - start]."""

    def read_ahead(self) -> None:
        """Ask the system to have the tensor in memory soon; returns at once."""

    def release(self, start: int, stop: int) -> None:
        """Elements start..stop will not be read again soon."""


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

    def release(self, start: int, stop: int) -> None:
        pass


@dataclass(frozen=True)
class FileTensor:
    """A tensor in a mapped safetensors file."""

    name: str
    file: Path
    mapping: mmap.mmap
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """First byte of its data in the file."""

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * ITEM_BYTES[self.dtype]

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        widen(self.raw(start, stop), self.dtype, out)

    def raw(self, start: int, stop: int) -> np.ndarray:
        """The bytes of elements start..stop as they stand in the file: uint8, read-only, not copied."""
        size = ITEM_BYTES[self.dtype]
        return np.frombuffer(self.mapping, np.uint8, (stop - start) * size, self.offset + start * size)

    def read_ahead(self) -> None:
        self._advise(mmap.MADV_WILLNEED, 0, self.num_elements)

    def release(self, start: int, stop: int) -> None:
        # The pages stay in the system's cache; they only stop counting as memory of this process.
        self._advise(mmap.MADV_DONTNEED, start, stop)

    def _advise(self, advice: int, start: int, stop: int) -> None:
        size = ITEM_BYTES[self.dtype]
        first = (self.offset + start * size) // PAGES * PAGES
        last = -(-(self.offset + stop * size) // PAGES) * PAGES
        if stop > start:
            self.mapping.madvise(advice, first, last - first)


def widen(raw: np.ndarray, dtype: str, out: np.ndarray) -> None:
    """Bytes of a dtype -> float32."""
    values = _aligned(raw, {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype])
    if dtype == "BF16":
        kernels.widen_bfloat16(values, out.view(np.uint32))
    else:
        out[:] = values


def _aligned(raw: np.ndarray, dtype: type) -> np.ndarray:
    values: np.ndarray = raw.view(dtype)
    return values if values.flags.aligned else values.copy()


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
    bits = _aligned(raw, unsigned)
    if kernels.largest_magnitude(bits, unsigned(magnitude)) < exponent:
        return None
    return int(np.argmax((bits & unsigned(magnitude)) >= exponent))
