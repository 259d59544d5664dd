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
from fusechat.models.model_files import INDEX_FILE, LARGEST_HEADER, TOKENIZER_FILES, read_model_config, weight_files

from .tensors import ITEM_BYTES, FileTensor, OpenFile

ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
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
            found = [self.folder / ADAPTER_FILE] if (self.folder / ADAPTER_FILE).is_file() else []
        elif (self.folder / INDEX_FILE).is_file():
            names = dict.fromkeys(self._weight_map().values())
            found = [self.folder / name for name in names]
        else:
            found = weight_files(self.folder)
        missing = [path for path in found if not path.is_file()]
        if missing:
            raise ModelError(f"{missing[0]}: named in {INDEX_FILE}, but not there; fetch the folder again")
        if not found:
            pickles = [path.name for pattern in PICKLES for path in self.folder.glob(pattern)]
            hint = (
                f" (pickles such as {pickles[0]} are refused: they can run code; save them as safetensors)"
                if pickles
                else ""
            )
            raise ModelError(f"{self.folder}: found no safetensors weights{hint}")
        return found

    def _weight_map(self) -> dict[str, str]:
        path = self.folder / INDEX_FILE
        try:
            found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path}: not a readable index: {error!r}") from None
        if not all(isinstance(name, str) and Path(name).name == name for name in found.values()):
            raise ModelError(f"{path}: names files outside its folder")
        return found

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
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path}: its safetensors header is broken: {error!r}") from None
        for name, (dtype, shape, first, last) in entries.items():
            item_bytes = ITEM_BYTES.get(dtype)
            if item_bytes is None:
                raise ModelError(f"{path}: tensor {name!r} has dtype {dtype}, which is not known here")
            if first < 0 or last - first != math.prod(shape) * item_bytes:
                raise ModelError(f"{path}: tensor {name!r}: bytes {first}..{last} do not hold {dtype} {list(shape)}")
            if 8 + length + last > size:
                raise ModelError(
                    f"{path}: cut: tensor {name!r} ends at byte {8 + length + last}, the file has {size}; fetch it again"
                )
            if name in self.tensors:
                raise ModelError(f"{path}: tensor {name!r} is also in {self.tensors[name].file}")
            self.tensors[name] = FileTensor(name, file, dtype, shape, 8 + length + first)


def _entry(entry: dict[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    first, last = (int(value) for value in entry["data_offsets"])
    return str(entry["dtype"]), tuple(int(length) for length in entry["shape"]), first, last
