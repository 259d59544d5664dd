"""A tokenizer.json is foreign data: ids that no table could hold are refused before it is loaded, and a panic on the Rust side
becomes an error of this project.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ModelError, first_line

FILE_NAME = "tokenizer.json"
LARGEST_ID = 2**24
"""The largest vocabularies have some hundred thousand ids; the library makes room for all ids up to the largest."""
LARGEST_FILE = 2**28
"""Bytes."""
LONGEST_INSERTION = 1024
"""Characters that a normalizer may put in the place of others; real ones put one or two. Each may stand for every character of a
text, and several may follow one another, so that a file that means harm can still make texts some thousand times longer."""


@contextmanager
def panics_named(name: str) -> Iterator[None]:
    """Within this, a panic of the Rust side is a ModelError that names the model; it is no Exception by itself."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ModelError(
            f"{name}: its {FILE_NAME} makes the tokenizer fail ({first_line(error)[:200]}); get the file anew, or take another model"
        ) from None


def check_tokenizer_file(model: str) -> None:
    """Refuse a tokenizer.json with absurd ids or insertions; what else may be wrong with it, loading says.

    Args:
        model: a folder; of a hub id nothing is looked at, for runs fetch models first.
    Raises:
        ModelError: an id that is beyond LARGEST_ID, or no number; a text that is inserted and too long; a file too large.
    """
    path = Path(model) / FILE_NAME
    if not path.is_file():
        return
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise ModelError(f"{path}: found {size:,} bytes, expected at most {LARGEST_FILE:,}; get the file anew")
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return
    for name, number in _ids(document):
        if not isinstance(number, int) or not 0 <= number <= LARGEST_ID:
            raise ModelError(
                f"{path}: token {name[:80]!r} has id {str(number)[:40]}, expected a number up to {LARGEST_ID:,}; get the file anew"
            )
    for part in ("normalizer", "pre_tokenizer"):
        for text in _insertions(document.get(part) if isinstance(document, dict) else None):
            if len(text) > LONGEST_INSERTION:
                raise ModelError(
                    f"{path}: its {part} inserts a text of {len(text):,} characters, expected at most {LONGEST_INSERTION:,}; get the "
                    "file anew"
                )


def _insertions(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        for key, value in part.items():
            if key in ("content", "prepend", "replacement") and isinstance(value, str):
                yield value
            else:
                yield from _insertions(value)
    elif isinstance(part, list):
        for value in part:
            yield from _insertions(value)


def _ids(document: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(document, dict):
        return
    model = document.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        yield from vocabulary.items()
    added = document.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict):
            yield str(token.get("content")), token.get("id")
