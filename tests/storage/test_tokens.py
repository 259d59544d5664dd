"""The tokens artifact: written, read whole and in ranges."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusechat.errors import ArtifactError
from fusechat.storage.tokens import Tokens
from fusechat.storage.tokens_reader import TokensReader, read_tokens

LENGTHS = [5, 0, 17, 3, 40, 1]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Tokens, Path]:
    rng, total = np.random.default_rng(0), sum(LENGTHS)
    starts = np.sort(rng.integers(0, 500, total)).astype(np.int32)
    made = Tokens.of_contents(
        rng.integers(0, 1000, total).astype(np.int32), rng.random(total) < 0.6, np.stack([starts, starts + 1], axis=1),
        np.cumsum([0, *LENGTHS]), {"vocab_size": 1000},
    )  # fmt: skip
    path = tmp_path_factory.mktemp("tokens") / "made"
    made.write(str(path))
    return made, path


def assert_same(one: Tokens, other: Tokens) -> None:
    for name in ("token_ids", "is_scored", "span", "field", "call_digest", "offsets"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_tokens_read_is_what_was_written(written):
    made, path = written
    found = read_tokens(str(path))
    assert_same(found, made)
    assert found.attributes["vocab_size"] == 1000


@settings(max_examples=30, deadline=None)
@given(st.tuples(st.integers(0, len(LENGTHS)), st.integers(0, len(LENGTHS))).map(sorted))
def test_tokens_reader_any_range_is_that_part_of_the_whole(written, ends):
    made, path = written
    found = TokensReader(str(path)).read(range(*ends))
    first, last = made.offsets[ends[0]], made.offsets[ends[1]]
    part = slice(first, last)
    assert_same(
        found,
        Tokens.of_contents(
            made.token_ids[part], made.is_scored[part], made.span[part], made.offsets[ends[0] : ends[1] + 1] - first, {}
        ),
    )  # fmt: skip


@pytest.mark.parametrize("shard_tokens", [1, 20, 1000])
def test_tokens_reader_lays_out_the_same_shards(written, shard_tokens):
    made, path = written
    one, other = made.layout(shard_tokens), TokensReader(str(path)).layout(shard_tokens)
    np.testing.assert_array_equal(one.shard_offsets, other.shard_offsets)
    np.testing.assert_array_equal(one.row_offsets, other.row_offsets)


@pytest.mark.parametrize("lost", ["", "span"])
def test_tokens_reader_of_no_tokens_says_what_to_run(written, tmp_path, lost):
    if lost:
        shutil.copytree(written[1], tmp_path / "made")
        shutil.rmtree(tmp_path / "made" / lost)
    with pytest.raises(ArtifactError, match="fusechat tokenize"):
        TokensReader(str(tmp_path / "made"))
