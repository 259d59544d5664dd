"""The host's side of extraction without a model: how fast one core packs, compresses and writes rows, and what they lose.

In: rows as they left an engine (`extraction_worker.Engine.captured`). The rows are repeated until a few shards of the
usual size are full; chunks are compressed one by one and hold fewer rows than were captured, so repeating them makes
nothing smaller.
"""

import shutil
import statistics
import time
from pathlib import Path

import numpy as np

from fusechat.storage.row_codec import decode_gaps, encode_gaps
from fusechat.storage.row_store import RowStore
from fusechat.storage.shard_layout import ShardLayout
from inference.capture.rows import TopKRows, unpack_rows
from inference.scoring_worker import pack_rows

SHARD_ROWS, NUM_SHARDS, ROWS_PER_DIALOGUE = 65_536, 3, 128


def load_rows(path: Path) -> TopKRows:
    with np.load(path) as arrays:
        return TopKRows(*(arrays[name] for name in ("topk_ids", "topk_logprobs", "label_logprob", "logsumexp")))


def host_rows_per_s(rows: TopKRows, folder: Path, *, vocab_size: int, logprob_step: float) -> float:
    """Rows a second of one core, the median over shards: unpacking what the engine gave, packing, compressing, writing."""
    store = _store(folder, rows.k, vocab_size, logprob_step, ROWS_PER_DIALOGUE)
    packed = _packed(rows)
    dialogues = SHARD_ROWS // ROWS_PER_DIALOGUE
    found = []
    for shard in range(NUM_SHARDS):
        first = np.arange(dialogues) * ROWS_PER_DIALOGUE + shard * SHARD_ROWS
        outputs = [packed.take(np.arange(at, at + ROWS_PER_DIALOGUE), axis=0, mode="wrap") for at in first]
        started = time.perf_counter()
        parts = [unpack_rows(output) for output in outputs]
        store.write_shard(shard, pack_rows(parts, store.k, vocab_size))
        found.append(SHARD_ROWS / (time.perf_counter() - started))
    return statistics.median(found)


def bytes_per_row(rows: TopKRows, folder: Path, *, vocab_size: int, logprob_step: float) -> float:
    """Bytes on disk of the captured rows, each once, all objects and records counted."""
    store = _store(folder, rows.k, vocab_size, logprob_step, len(rows), 1)
    store.write_shard(0, pack_rows([rows], rows.k, vocab_size))
    return store.num_bytes() / len(rows)


def mean_kl(rows: TopKRows, logprob_step: float) -> float:
    """Nats from the captured rows to what is read back, the tail as one outcome; the mean over rows."""
    stored = decode_gaps(encode_gaps(rows.topk_logprobs, logprob_step), logprob_step)
    p, q = (_with_tail(logprobs) for logprobs in (rows.topk_logprobs, stored))
    return float((p * (np.log(p) - np.log(q))).sum(axis=1).mean())


def _with_tail(logprobs: np.ndarray) -> np.ndarray:
    probs = np.exp(logprobs.astype(np.float64))
    tail = np.clip(1 - probs.sum(axis=1, keepdims=True), 1e-9, None)
    joined = np.concatenate([probs, tail], axis=1)
    shares: np.ndarray = joined / joined.sum(axis=1, keepdims=True)
    return shares


def _packed(rows: TopKRows) -> np.ndarray:
    """As the engine gives them: int32 [rows, 2k+2]."""
    floats = np.concatenate([rows.topk_logprobs, rows.label_logprob[:, None], rows.logsumexp[:, None]], axis=1)
    return np.concatenate([rows.topk_ids.astype(np.int32), floats.astype(np.float32).view(np.int32)], axis=1)


def _store(
    folder: Path, k: int, vocab_size: int, logprob_step: float, dialogue_rows: int, num_shards: int = NUM_SHARDS
) -> RowStore:
    shutil.rmtree(folder, ignore_errors=True)
    dialogues = max(1, SHARD_ROWS // dialogue_rows) if num_shards > 1 else 1
    layout = ShardLayout(
        np.arange(num_shards + 1, dtype=np.int64) * dialogues,
        np.arange(num_shards + 1, dtype=np.int64) * dialogues * dialogue_rows,
        np.arange(num_shards * dialogues + 1, dtype=np.int64) * dialogue_rows,
    )
    return RowStore.create(
        str(folder), "logprobs", layout, k=k, vocab_size=vocab_size, logprob_step=logprob_step, settings={}
    )
