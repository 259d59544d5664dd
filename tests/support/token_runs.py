"""Tokenize stages that are cut into many small pieces."""

import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from stages_here import reading_works, token_works, tokenize_run

from fusechat.config import RunConfig
from fusechat.progress import Progress
from fusechat.storage import token_pieces, zarr_arrays
from fusechat.storage.artifact import Artifact
from fusechat.storage.work import Work, run_here
from fusechat.text import dialogue_files, dialogue_stage, split_writer

QUIET = Progress(quiet=True)


def cut_small(monkeypatch: pytest.MonkeyPatch, range_bytes: int) -> None:
    """Files are read, and dialogues tokenized, in pieces of so many bytes."""
    monkeypatch.setattr(dialogue_stage, "file_ranges", partial(dialogue_files.file_ranges, size=range_bytes))
    monkeypatch.setattr(split_writer, "RANGE_BYTES", range_bytes)


def small_objects(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Arrays lie in objects of so many elements, and chunks of a quarter of these."""
    monkeypatch.setattr(token_pieces, "OBJECT_LENGTH", tokens)
    monkeypatch.setattr(zarr_arrays, "OBJECT_LENGTH", tokens)
    monkeypatch.setattr(zarr_arrays, "CHUNK_LENGTH", tokens // 4)


def in_any_order(works: list[Work], seed: int) -> list[Artifact]:
    """Do the units of each work in an order of chance."""
    shuffled = [
        replace(work, missing=random.Random(seed).sample(list(work.missing), len(work.missing))) for work in works
    ]
    return run_here(shuffled, QUIET)


def tokenize_all(config: RunConfig, seed: int | None = None) -> list[Artifact]:
    """The dialogues, then every model's tokens; with a seed, their pieces in an order of chance."""
    if seed is None:
        return tokenize_run(config)
    made = in_any_order(reading_works(config), seed)
    for model in config.models:
        made += in_any_order(token_works(config, model.name), seed)
    return made


def files_of(folder: str | Path) -> dict[str, bytes]:
    """All files of an artifact but its record, which says when it was made, and its recipe."""
    base = Path(folder)
    return {
        str(path.relative_to(base)): path.read_bytes()
        for path in sorted(base.rglob("*"))
        if path.is_file() and path.name not in ("artifact.json", "plan.json", "index.json")
    }
