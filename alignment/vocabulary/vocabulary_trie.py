"""What a vocabulary's ids spell, in the shape that compiled loops read: flat bytes, and a trie over them.

In: the bytes of each id (`fusechat.text.token_surface`). Out: numpy arrays. Knows nothing about texts or distributions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fusechat.compilation import kept

from ..rows.compiled import compiled

NO_TOKEN = -1


class Surfaces(NamedTuple):
    """The bytes of every id, end to end."""

    data: np.ndarray
    """uint8 [bytes]"""
    offsets: np.ndarray
    """int64 [vocabulary+1]; an id that spells nothing (a control token) has no bytes."""


class Trie(NamedTuple):
    """A byte trie, nodes numbered breadth first, so that the children of a node stand side by side; node 0 is the root."""

    first_child: np.ndarray
    """int32 [nodes+1]: the children of node n are first_child[n] to first_child[n+1]-1, by byte."""
    bytes: np.ndarray
    """uint8 [nodes]: the byte that leads to each node."""
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
    # A bytearray: an array over bytes is read-only, another type to Numba, which would compile every loop a second time.
    data = np.frombuffer(bytearray().join(surface or b"" for surface in surfaces), np.uint8)
    return Surfaces(data, np.concatenate([[0], np.cumsum(lengths)]))


def build_trie(surfaces: Surfaces, reachable: np.ndarray) -> Trie:
    """A trie over the ids that the tokenizer can produce for their own bytes.

    Args:
        reachable: bool [vocabulary]; of two reachable ids that spell the same bytes the smaller one is found.
    """
    offsets, data = surfaces.offsets, surfaces.data.tobytes()
    pieces = [(data[offsets[i] : offsets[i + 1]], int(i)) for i in np.flatnonzero(reachable & (np.diff(offsets) > 0))]
    pieces.sort()
    ids = np.array([token_id for _, token_id in pieces], np.int32)
    capacity = sum(len(piece) for piece, _ in pieces) + 1
    arrays = np.empty(capacity + 1, np.int32), np.zeros(capacity, np.uint8), np.full(capacity, NO_TOKEN, np.int32)
    nodes = _number_nodes(surfaces.data, offsets, ids, *arrays)
    return Trie(arrays[0][: nodes + 1].copy(), arrays[1][:nodes].copy(), arrays[2][:nodes].copy())


@kept
def _number_nodes(
    data: np.ndarray, offsets: np.ndarray, ids: np.ndarray, first_child: np.ndarray, node_bytes: np.ndarray,
    token_ids: np.ndarray,
) -> int:  # fmt: skip
    """Breadth first over pieces in byte order: a node is a run of pieces that share their first `depth` bytes.

    Args:
        data, offsets: those of `Surfaces`.
        ids: int32 [pieces], by their bytes.
        first_child, node_bytes, token_ids: those of `Trie`, with room for more nodes; are filled.
    Returns:
        The number of nodes.
    """
    low, high, depth = (
        np.zeros(len(node_bytes), np.int64),
        np.empty(len(node_bytes), np.int64),
        np.zeros(len(node_bytes), np.int64),
    )
    high[0], nodes, node = len(ids), 1, 0
    while node < nodes:
        first_child[node] = nodes
        place, level = low[node], depth[node]
        while place < high[node] and offsets[ids[place] + 1] - offsets[ids[place]] == level:
            if token_ids[node] < 0 and level > 0:
                token_ids[node] = ids[place]  # of equal pieces the first is the smallest id
            place += 1
        while place < high[node]:
            byte = data[offsets[ids[place]] + level]
            low[nodes], depth[nodes], node_bytes[nodes] = place, level + 1, byte
            while place < high[node] and data[offsets[ids[place]] + level] == byte:
                place += 1
            high[nodes] = place
            nodes += 1
        node += 1
    first_child[nodes] = nodes
    return nodes


@compiled
def step(trie: Trie, node: int, byte: int) -> int:
    """The child of a node, or -1."""
    low, high = trie.first_child[node], trie.first_child[node + 1]
    while high - low > 8:
        middle = (low + high) // 2
        if trie.bytes[middle] <= byte:
            low = middle
        else:
            high = middle
    while low < high and trie.bytes[low] < byte:
        low += 1
    return low if low < high and trie.bytes[low] == byte else -1


@compiled
def longest_match(trie: Trie, data: np.ndarray, start: int, stop: int, node: int) -> tuple[int, int]:
    """The longest id whose path leads from `node` through `data[start:stop]`; data is uint8 [bytes].

    Returns:
        (id, bytes of data it covers); (-1, 0) if there is none. An id that ends at `node` itself covers 0 bytes.
    """
    token_id, covered = trie.token_ids[node], 0
    place = start
    while place < stop:
        node = step(trie, node, data[place])
        if node < 0:
            break
        place += 1
        if trie.token_ids[node] >= 0:
            token_id, covered = trie.token_ids[node], place - start
    return token_id, covered


@compiled
def descend(trie: Trie, data: np.ndarray, start: int, stop: int, node: int) -> int:
    """The node reached from `node` through `data[start:stop]` (uint8 [bytes]), or -1."""
    for place in range(start, stop):
        node = step(trie, node, data[place])
        if node < 0:
            break
    return node


@kept
def nodes_of(trie: Trie, surfaces: Surfaces) -> np.ndarray:
    """int32 [vocabulary]: the node that the bytes of each id lead to, or -1."""
    nodes = np.empty(len(surfaces.offsets) - 1, np.int32)
    for token_id in range(len(nodes)):
        nodes[token_id] = descend(trie, surfaces.data, surfaces.offsets[token_id], surfaces.offsets[token_id + 1], 0)
    return nodes
