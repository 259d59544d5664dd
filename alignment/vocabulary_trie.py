"""What a vocabulary's ids spell, in the shape that compiled loops read: flat bytes, and a trie over them.

In: the bytes of each id (`fusechat.token_surface`). Out: numpy arrays. Knows nothing about texts or distributions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

NO_TOKEN = -1


class Surfaces(NamedTuple):
    """The bytes of every id, end to end."""

    data: np.ndarray
    """uint8 [bytes]"""
    offsets: np.ndarray
    """int64 [vocabulary+1]; an id that spells nothing (a control token) has no bytes."""


class Trie(NamedTuple):
    """A byte trie; node 0 is the root. Children stand in one open-addressing hash table keyed by node and byte."""

    keys: np.ndarray
    """int64 [slots]: node * 256 + byte, -1 where free; the number of slots is a power of two."""
    children: np.ndarray
    """int32 [slots]"""
    token_ids: np.ndarray
    """int32 [nodes]: the id spelled by the path to this node, or -1."""


def flatten_surfaces(surfaces: Sequence[bytes | None], vocab_size: int | None = None) -> Surfaces:
    """Lay the bytes of all ids end to end.

    Args:
        surfaces: bytes per id, None for control tokens.
        vocab_size: rows of the result where the model's vocabulary is padded beyond the tokenizer's.
    """
    size = max(len(surfaces), vocab_size or 0)
    lengths = np.zeros(size, np.int64)
    lengths[: len(surfaces)] = [len(surface or b"") for surface in surfaces]
    data = np.frombuffer(b"".join(surface or b"" for surface in surfaces), np.uint8)
    return Surfaces(data, np.concatenate([[0], np.cumsum(lengths)]))


def build_trie(surfaces: Surfaces, reachable: np.ndarray) -> Trie:
    """A trie over the ids that the tokenizer can produce for their own bytes.

    Args:
        reachable: bool [vocabulary]; of two reachable ids that spell the same bytes the smaller one is found.
    """
    slots = 1 << max(4, int(2 * len(surfaces.data)).bit_length())
    keys, children = np.full(slots, -1, np.int64), np.empty(slots, np.int32)
    token_ids = np.full(len(surfaces.data) + 1, NO_TOKEN, np.int32)
    nodes = _insert_all(surfaces.data, surfaces.offsets, reachable, keys, children, token_ids)
    return Trie(keys, children, token_ids[:nodes].copy())


@njit(cache=True)
def _insert_all(data, offsets, reachable, keys, children, token_ids):
    nodes = 1
    for token_id in range(len(offsets) - 1):
        if not reachable[token_id] or offsets[token_id] == offsets[token_id + 1]:
            continue
        node = 0
        for place in range(offsets[token_id], offsets[token_id + 1]):
            key = np.int64(node) * 256 + data[place]
            slot = find_slot(keys, key)
            if keys[slot] < 0:
                keys[slot], children[slot] = key, nodes
                nodes += 1
            node = children[slot]
        if token_ids[node] < 0:
            token_ids[node] = token_id
    return nodes


@njit(cache=True, inline="always")
def find_slot(keys, key):
    """Where a key stands, or the free slot where it would."""
    mask = len(keys) - 1
    slot = ((key * np.int64(-7046029254386353131)) >> np.int64(20)) & mask
    while keys[slot] >= 0 and keys[slot] != key:
        slot = (slot + 1) & mask
    return slot


@njit(cache=True, inline="always")
def step(keys, children, node, byte):
    """The child of a node, or -1."""
    key = np.int64(node) * 256 + byte
    slot = find_slot(keys, key)
    return children[slot] if keys[slot] == key else -1


@njit(cache=True)
def longest_match(trie, data, start, stop, node):
    """The longest id whose path leads from `node` through `data[start:stop]`.

    Returns:
        (id, bytes of data it covers); (-1, 0) if there is none. An id that ends at `node` itself covers 0 bytes.
    """
    found, covered = trie.token_ids[node], 0
    place = start
    while place < stop:
        node = step(trie.keys, trie.children, node, data[place])
        if node < 0:
            break
        place += 1
        if trie.token_ids[node] >= 0:
            found, covered = trie.token_ids[node], place - start
    return found, covered


@njit(cache=True)
def descend(trie, data, start, stop, node):
    """The node reached from `node` through `data[start:stop]`, or -1."""
    for place in range(start, stop):
        node = step(trie.keys, trie.children, node, data[place])
        if node < 0:
            break
    return node
