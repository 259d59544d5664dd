"""Small row stores with known rows."""

from pathlib import Path

import numpy as np

from fusechat.storage.row_store import RowStore
from fusechat.storage.shard_layout import lay_out_shards

K = 4
STEP = 1 / 32


def random_rows(num_rows: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, (num_rows, 50)).astype(np.float32)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    ids = np.argsort(-logprobs, axis=1)[:, :K]
    return {
        "topk_ids": ids.astype(np.uint16),
        "topk_logprobs": np.take_along_axis(logprobs, ids, axis=1),
        "label_logprob": logprobs[:, 7],
    }


def new_store(url: Path, artifact: str = "logprobs", **changes: object) -> RowStore:
    rng = np.random.default_rng(0)
    num_tokens = rng.integers(5, 60, 40)
    layout = lay_out_shards(num_tokens, num_tokens // 2, 300)
    arguments = {"k": K, "vocab_size": 50, "logprob_step": STEP, "settings": {"model": "m"}, **changes}
    return RowStore.create(str(url), artifact, layout, **arguments)  # type: ignore[arg-type]


def fill(store: RowStore, shards: list[int] | None = None) -> dict[int, dict[str, np.ndarray]]:
    written = {}
    for shard in shards if shards is not None else range(store.layout.num_shards):
        rows = store.layout.rows(shard)
        written[shard] = random_rows(rows.stop - rows.start, shard)
        store.write_shard(shard, written[shard])
    return written
