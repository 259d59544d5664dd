"""A model folder's weights as named tensors that can be read in ranges; nothing is loaded.

In: a Hugging Face folder with safetensors (one file, or shards with an index) or a LoRA adapter. Out: names, dtypes,
shapes and places, all checked against the files' sizes. Pickles are never opened. Knows nothing about merging.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from fusechat.errors import ModelError
from fusechat.models.model_files import (
    INDEX_FILE,
    LARGEST_HEADER,
    TOKENIZER_FILES,
    read_model_config,
    read_small_json,
    weight_files,
)

from .tensors import ITEM_BYTES, FileTensor, OpenFile

ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
MAX_AXES = 32
"""Axes of a tensor."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Checkpoint:
    """The tensors of a folder, its files open for as long as they are referred to."""

    def __init__(self, folder: str | Path) -> None:
        """Open the files and check their headers.

        Raises:
            ModelError: no safetensors, only pickles, a broken or cut file; file and tensor are named.
        """
        self.folder = Path(folder)
        self.is_adapter = (self.folder / ADAPTER_CONFIG).is_file()
        self.tensors: dict[str, FileTensor] = {}
        """Name -> tensor, in the files' order."""
        for path in self._files():
            self._read_header(path)
        if not self.is_adapter:
            self._check_index()

    @property
    def config(self) -> dict[str, Any]:
        """config.json of the folder."""
        return read_model_config(self.folder)

    def identity(self) -> list[list[Any]]:
        """[path, bytes, modification time in ns] of each file that decides what is merged: the same values, the same model.

        Beside the weights: an adapter's settings (its scale), the config, and the tokenizer, by which rows are joined.
        """
        small = (self.folder / name for name in ("config.json", ADAPTER_CONFIG, *TOKENIZER_FILES))
        files = dict.fromkeys([*(tensor.file for tensor in self.tensors.values()), *filter(Path.is_file, small)])
        return [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in files]

    def _files(self) -> list[Path]:
        if not self.folder.is_dir():
            raise ModelError(f"{self.folder}: no such folder; expected a Hugging Face model or adapter folder")
        if self.is_adapter:
            files = [self.folder / ADAPTER_FILE] if (self.folder / ADAPTER_FILE).is_file() else []
        elif (self.folder / INDEX_FILE).is_file():
            names = dict.fromkeys(self._weight_map().values())
            files = [self.folder / name for name in names]
        else:
            files = weight_files(self.folder)
        missing = [path for path in files if not path.is_file()]
        if missing:
            raise ModelError(f"{missing[0]}: named in {INDEX_FILE}, but not there; fetch the folder again")
        if not files:
            pickles = [path.name for pattern in PICKLES for path in self.folder.glob(pattern)]
            hint = (
                f" (pickles such as {pickles[0]} are refused: they can run code; save them as safetensors)"
                if pickles
                else ""
            )
            raise ModelError(f"{self.folder}: found no safetensors weights{hint}")
        return files

    def _weight_map(self) -> dict[str, str]:
        weight_files(self.folder)  # refuses an index that cannot be read, or names files outside its folder
        weight_map: dict[str, str] = read_small_json(self.folder / INDEX_FILE)["weight_map"]
        return weight_map

    def _check_index(self) -> None:
        if not (self.folder / INDEX_FILE).is_file():
            return
        for name, file in self._weight_map().items():
            if name not in self.tensors or self.tensors[name].file.name != file:
                raise ModelError(f"{self.folder / file}: tensor {name!r} of {INDEX_FILE} is not in it")

    def _read_header(self, path: Path) -> None:
        file = OpenFile(path)
        size = file.num_bytes
        if size < 8:
            raise ModelError(f"{path}: cut or no safetensors file: it has {size} bytes")
        start = np.empty(8, np.uint8)
        file.read(0, start)
        length = int.from_bytes(start.tobytes(), "little")
        if length > min(size - 8, LARGEST_HEADER):
            raise ModelError(f"{path}: cut or no safetensors file: {size} bytes, its header says {length}")
        try:
            text = np.empty(length, np.uint8)
            file.read(8, text)
            header = json.loads(text.tobytes())
            header.pop("__metadata__", None)
            entries = {name: _entry(entry) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(f"{path}: its safetensors header is broken: {error!r}") from None
        for name, (dtype, shape, first, last) in entries.items():
            item_bytes = ITEM_BYTES.get(dtype)
            if item_bytes is None:
                raise ModelError(f"{path}: tensor {name[:80]!r} has dtype {dtype[:80]}, which is not known here")
            if min(first, *shape, 0) < 0 or last - first != math.prod(shape) * item_bytes:
                raise ModelError(f"{path}: tensor {name!r}: bytes {first}..{last} do not hold {dtype} {list(shape)}")
            if 8 + length + last > size:
                raise ModelError(
                    f"{path}: cut: tensor {name!r} ends at byte {8 + length + last}, the file has {size}; fetch it again"
                )
            if name in self.tensors:
                raise ModelError(f"{path}: tensor {name!r} is also in {self.tensors[name].file}")
            self.tensors[name] = FileTensor(name, file, dtype, shape, 8 + length + first)


def _entry(entry: dict[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    offsets, shape = list(entry["data_offsets"]), tuple(entry["shape"])
    if len(offsets) != 2 or len(shape) > MAX_AXES:
        raise ValueError(f"found {len(offsets)} offsets and {len(shape)} axes, expected 2 and at most {MAX_AXES}")
    if any(type(value) is not int for value in (*offsets, *shape)):
        raise TypeError("offsets or lengths that are no whole numbers")
    return str(entry["dtype"]), shape, offsets[0], offsets[1]
