"""One safetensors file, written in pieces by several threads: names, dtypes and shapes first, then bytes at their places."""

import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..recipe import TensorRecipe


class ShardWriter:
    """Writes beside the final name and takes it on `close`, so that a file of that name is whole."""

    def __init__(self, path: Path, tensors: Sequence[TensorRecipe]) -> None:
        self.path = path
        # A name of its own: a worker that was given up for dead may still be writing the same shard.
        self._partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        places: dict[str, int] = {}
        position = 0
        for tensor in tensors:
            places[tensor.name] = position
            last = position + tensor.num_bytes
            header[tensor.name] = {
                "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, last],
            }  # fmt: skip
            position = last
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._places = {name: 8 + len(text) + place for name, place in places.items()}
        self._file = self._partial.open("wb", buffering=0)
        try:
            os.ftruncate(self._file.fileno(), 8 + len(text) + position)
            self._write(np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8), 0)
        except OSError:
            self.discard()
            raise

    def write(self, name: str, first_byte: int, data: np.ndarray) -> None:
        """Write bytes of a tensor, uint8, from `first_byte` of it on. Safe to call from several threads."""
        self._write(data, self._places[name] + first_byte)

    def _write(self, data: np.ndarray, place: int) -> None:
        view = data.data
        while view:
            count = os.pwrite(self._file.fileno(), view, place)
            view, place = view[count:], place + count

    def close(self) -> None:
        """All bytes are written: give the file its name."""
        self._file.close()
        self._partial.replace(self.path)

    def discard(self) -> None:
        """Delete what was written. Threads that still write do so into the deleted file, which closes after the last."""
        self._partial.unlink(missing_ok=True)
