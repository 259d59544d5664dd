"""The choice on disk: who teaches each dialogue, and with what trust. Written block by block, read as far as it is needed."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from fusechat.storage.contracts import CHOICE, CONTRACT_VERSION
from fusechat.storage.write_errors import storage_errors
from fusechat.storage.zarr_arrays import ATTRIBUTE, LongWriter, create_long_array, ranges, whole_array

BLOCK = 1 << 16
"""Dialogues whose losses under the sources are in memory at a time."""


@dataclass(frozen=True)
class Choice:
    """Who teaches each dialogue: what training reads of a choice artifact."""

    sources: list[str]
    """Names; the place in this list is the source's number."""
    source: np.ndarray
    """int16 [dialogues]; -1: nobody"""
    trust: np.ndarray
    """float32 [dialogues]"""
    is_own: np.ndarray
    """bool [dialogues]: the student's own answers; none but in a round"""

    @classmethod
    def read(cls, url: str) -> "Choice":
        """Read a choice artifact but for the losses: 7 bytes a dialogue."""
        with storage_errors(url):
            group = zarr.open_group(store=url, mode="r")
            attributes: Any = group.attrs[ATTRIBUTE]
            arrays = {name: np.asarray(whole_array(group, name)[...]) for name in ("source", "trust", "is_own")}
        return cls(list(attributes["sources"]), **arrays)


def read_losses(url: str, chosen: Choice) -> tuple[np.ndarray, np.ndarray]:
    """The losses of each dialogue's teacher (of the pivot where it has none) and of the pivot: float64 [dialogues], nats."""
    with storage_errors(url):
        group = zarr.open_group(store=url, mode="r")
        pivot: np.ndarray = np.asarray(whole_array(group, "pivot_loss")[...])
        of_sources, teacher = whole_array(group, "source_losses"), pivot.copy()
        for part in ranges(len(pivot), BLOCK):
            block = slice(part.start, part.stop)
            for number in range(len(chosen.sources)):
                mine = chosen.source[block] == number
                if mine.any():
                    teacher[block][mine] = of_sources[number, block][mine]
    return teacher, pivot


@contextlib.contextmanager
def writing(url: str, sources: list[str], num_dialogues: int) -> Iterator[dict[str, LongWriter]]:
    """Write a choice artifact, in place of what was there; gives a writer for each array of the contract."""
    shape = {"dialogues": num_dialogues, "sources": len(sources)}
    with storage_errors(url), contextlib.ExitStack() as writers:
        group = zarr.open_group(store=url, mode="a")
        yield {
            spec.name: writers.enter_context(
                LongWriter(
                    create_long_array(
                        group, spec.name, tuple(shape[str(axis)] for axis in spec.axes), spec.dtypes[0], spec.fill_value,
                        axis=len(spec.axes) - 1,
                    )
                )
            )
            for spec in CHOICE.arrays
        }  # fmt: skip
        group.attrs[ATTRIBUTE] = {"contract_version": CONTRACT_VERSION, "artifact": "choice", "sources": sources}
