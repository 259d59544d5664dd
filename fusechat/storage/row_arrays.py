"""How the rows of one shard lie in their arrays: values in, what stands on disk out, and back.

Core codecs only (transpose, blosc, zstd, bytes, crc32c, sharding); the module `row_store` says what each array holds.
"""

from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, TransposeCodec, ZstdCodec

from .contracts import Contract, id_dtype
from .row_codec import GAP_PADDING, decode_gaps, encode_gaps
from .shard_layout import ShardLayout

LABEL_STEP = 1 / 1024
"""Grid of the label logprobs, nats."""
COMMIT_ARRAY = "label_logprob"
"""Written last: its object is the shard's commit mark."""


def create_row_array(
    group: zarr.Group, contract: Contract, name: str, layout: ShardLayout, k: int, vocab_size: int
) -> None:
    """Make one array of a store; each shard is one object of it."""
    spec = contract.spec(name)
    wide = "k" in spec.axes
    capacity, chunk = layout.capacity, layout.chunk_rows
    dtype = {"topk_ids": id_dtype(vocab_size), "topk_logprobs": "uint16"}.get(name, spec.dtypes[0])
    group.create_array(
        name,
        shape=(layout.num_shards * capacity, k) if wide else (layout.num_shards * capacity,),
        dtype=dtype,
        chunks=(chunk, k) if wide else (chunk,),
        shards=(capacity, k) if wide else (capacity,),
        fill_value=GAP_PADDING if name == "topk_logprobs" else spec.fill_value,
        # Gaps of one rank resemble each other; ids compress better row by row.
        filters=[TransposeCodec(order=(1, 0))] if name == "topk_logprobs" else None,
        serializer=BytesCodec(),
        compressors=[_compressor(name), Crc32cCodec()],
        dimension_names=[str(axis) for axis in spec.axes],
        attributes={"unit": spec.unit, "meaning": spec.meaning},
        # An all-fill chunk must be written: a missing object means a missing shard.
        config={"write_empty_chunks": True},
        overwrite=True,
    )


def _compressor(name: str) -> Any:
    if name == "topk_ids":
        return ZstdCodec(level=9)
    if name == "topk_logprobs":
        return BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=2)
    return BloscCodec(cname="zstd", clevel=5, shuffle="shuffle", typesize=4 if name == COMMIT_ARRAY else 1)


def encode_rows(name: str, values: np.ndarray, logprob_step: float, dtype: Any) -> np.ndarray:
    """The values of an array as they stand on disk.

    Args:
        logprob_step: grid of the top-k logprobs, nats.
        dtype: of the array on disk.
    """
    if name == "topk_logprobs":
        return encode_gaps(values, logprob_step)
    if name == COMMIT_ARRAY:
        return (np.rint(values / np.float32(LABEL_STEP)) * np.float32(LABEL_STEP)).astype(np.float32)
    return values.astype(dtype, copy=False)


def decode_rows(name: str, values: np.ndarray, logprob_step: float) -> np.ndarray:
    """What `encode_rows` made of the values, back on the grid."""
    return decode_gaps(values, logprob_step) if name == "topk_logprobs" else values
