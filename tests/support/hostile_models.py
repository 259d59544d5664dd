"""Model folders for the tests of hostile inputs: weights with any header."""

import json
import struct
from pathlib import Path


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64], **changes}


def write_weights(path: Path, header: object, length: int | None = None) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(64))


def tiny_folder(folder: Path) -> Path:
    """A model folder of one tensor."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    write_weights(folder / "model.safetensors", {"a.weight": entry()})
    return folder
