"""What an alignment that was stopped finds damaged in its folder is made again, to the same bytes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from alignment_runs import objects_of, prepared
from stages_here import align

from alignment.vocabulary.vocabulary_file import FILE_NAME
from fusechat.config import RunConfig


@pytest.fixture
def config(run_file: Path) -> RunConfig:
    return prepared(run_file, "extraction.shard_tokens=300")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def other_figure(path: Path) -> None:
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "chained": 77}))


HARMS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "vocabularies cut": (FILE_NAME, lambda path: path.write_bytes(path.read_bytes()[:100])),
    "vocabularies emptied": (FILE_NAME, lambda path: path.write_bytes(b"")),
    "vocabularies flipped": (FILE_NAME, flip),
    "vocabularies gone": (FILE_NAME, Path.unlink),
    "figures changed": ("figures/1.json", other_figure),
    "figures cut": ("figures/1.json", lambda path: path.write_text('{"sums": [')),
    "figures gone": ("figures/1.json", Path.unlink),
}


def test_what_is_damaged_in_a_stopped_alignment_is_made_again(config: RunConfig) -> None:
    name = config.sources[0].name
    made = align(config, name)
    url, objects, counts = Path(made.url), objects_of(Path(made.url)), made.counts
    for what, (file, harm) in HARMS.items():
        (url / "artifact.json").unlink()
        harm(url / file)
        again = align(config, name)
        assert objects_of(url) == objects and again.counts == counts, what
