"""Where a model's files are, and whether they are what they should be."""

import contextlib
import difflib
import json
import re
from pathlib import Path
from typing import Any

from ..config import ModelSection
from ..errors import ModelError, first_line

INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"
NOT_FETCHED = ("*.bin", "*.pth", "*.gguf", "consolidated*", "original/*")
"""Other forms of the same weights, which many models on the hub carry."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def resolve_model(model: ModelSection) -> Path:
    """The local folder of a model; a hub id is downloaded (or found in the hub's cache).

    Raises:
        ModelError: no such folder, no config.json or no safetensors in it, or the hub does not have it.
    """
    folder = Path(model.model)
    if folder.is_dir():
        return _checked(folder, model)
    if model.model.count("/") > 1 or model.model.startswith((".", "/")) or folder.parent.is_dir():
        beside = [str(path) for path in folder.parent.glob("*/")] if folder.parent.is_dir() else []
        near = difflib.get_close_matches(str(folder), beside, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        if near or model.model.startswith((".", "/")) or (folder.parent.is_dir() and str(folder.parent) != "."):
            raise ModelError(f"{model.name}: no model folder {model.model}{hint}")
    return _checked(_download(model), model)


def _download(model: ModelSection) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from requests import RequestException

    try:
        return Path(snapshot_download(model.model, revision=model.revision, ignore_patterns=list(NOT_FETCHED)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RequestException, OSError) as error:
        raise ModelError(
            f"{model.name}: {model.model!r} is no local folder, and the hub did not give it: {_shown(error)}; "
            "check the path or hub id, and the network"
        ) from None


def _shown(error: BaseException) -> str:
    """What a hub says, in one short line without control characters and tokens."""
    line = "".join(character if character.isprintable() else " " for character in first_line(error)[:300])
    return re.sub(r"hf_\w+", "hf_...", line)


def _checked(folder: Path, model: ModelSection) -> Path:
    for pattern in ("config.json", "*.safetensors"):
        if not any(folder.glob(pattern)):
            raise ModelError(
                f"{model.name}: {folder} holds no {pattern}; expected a Hugging Face folder with safetensors"
            )
    settings = folder / "generation_config.json"
    if settings.exists():
        try:
            read_small_json(settings)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{model.name}: {settings}: not readable: {str(error)[:200]}; correct it, or delete it"
            ) from None
    return folder


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights, as transformers picks them: those that the index names, or `model.safetensors`;
    other files of that form beside them are something else. Without either, all there are.

    Raises:
        ModelError: an index that cannot be read, or that names files outside its folder.
    """
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            names = set(read_small_json(index)["weight_map"].values())
            outside = [name for name in names if Path(name).name != name]
            [(folder / name).is_file() for name in names]  # a name that no file can have raises
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index}: not a readable index: {str(error)[:200]!r}") from None
        if outside:
            raise ModelError(f"{index}: names files outside its folder")
        return sorted(folder / name for name in names)
    whole = folder / WEIGHTS_FILE
    return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))


def check_trainable(folder: Path, name: str) -> None:
    """Refuse a pivot whose weights are quantized: pivots are trained and merged whole.

    Raises:
        ModelError: what was found, in config.json or in a weight file.
    """
    values = read_model_config(folder)
    for part in (values, values.get("text_config") or {}):
        if settings := part.get("quantization_config") or part.get("compression_config"):
            method = settings.get("quant_method", "unnamed") if isinstance(settings, dict) else settings
            raise ModelError(
                f"{name}: {folder}/config.json: found quantization_config ({method}), expected whole weights: the pivot is trained "
                "and merged; give the model that it was quantized from (sources may be quantized)"
            )
    for file in weight_files(folder):
        for tensor, dtype in _dtypes(file).items():
            if dtype.startswith(QUANTIZED):
                raise ModelError(
                    f"{name}: {file}: tensor {tensor!r} is {dtype}, expected float32, bfloat16 or float16: the pivot is trained and "
                    "merged; give the model that it was quantized from (sources may be quantized)"
                )


QUANTIZED = ("F8", "F6", "F4")
"""How names of dtypes begin that no training takes."""


def _dtypes(file: Path) -> dict[str, str]:
    """Tensor -> dtype, from a safetensors header; nothing where the file is damaged, which those that read it will name."""
    if not file.is_file():
        return {}
    damage = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
    with contextlib.suppress(*damage), file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(min(size, LARGEST_HEADER)))
        return {tensor: str(entry["dtype"]) for tensor, entry in header.items() if tensor != "__metadata__"}
    return {}


LARGEST_HEADER = 100 * 2**20
"""Bytes; what the safetensors library allows, and no JSON file of a model reaches."""


def read_model_config(folder: Path) -> dict[str, Any]:
    """config.json as plain values.

    Raises:
        ModelError: it is not there, or holds something else than an object.
    """
    try:
        config = read_small_json(folder / "config.json")
        for key in ("text_config", "quantization_config", "compression_config"):
            if not isinstance(config.get(key) or {}, dict):
                raise ValueError(f"{key} is {type(config[key]).__name__}, expected an object")
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}/config.json: not readable: {error}") from None
    return config


def read_small_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder, which others may have written.

    Raises:
        OSError, ValueError: no such file, a device or pipe, a file too large, or no JSON object.
    """
    if path.exists() and not path.is_file():
        raise ValueError("found a folder, device or pipe, expected a file")
    if (size := path.stat().st_size) > LARGEST_HEADER:
        raise ValueError(f"found {size:,} bytes, expected at most {LARGEST_HEADER:,}")
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(values, ensure_ascii=False).encode()  # half a surrogate pair, which no message can hold, raises
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"found {type(values).__name__}, expected an object")
    return values


def find_config(model: ModelSection) -> dict[str, Any]:
    """A model's config.json from its local folder or the hub's cache; nothing is downloaded, no weights are needed.

    Raises:
        ModelError: it is in neither; the message says what to do.
    """
    folder = Path(model.model)
    if folder.is_dir():
        return read_model_config(folder)
    cached: object = None
    if not model.model.startswith((".", "/")) and model.model.count("/") <= 1:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        with contextlib.suppress(HFValidationError):
            cached = try_to_load_from_cache(model.model, "config.json", revision=model.revision)
    if not isinstance(cached, str):
        raise ModelError(
            f"{model.name}: no config.json of {model.model!r}: it is no local folder and not in the hub's cache; "
            f"run `hf download {model.model} config.json` (some kB, no weights) or give the path of its folder"
        )
    return read_model_config(Path(cached).parent)
