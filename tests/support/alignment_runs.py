"""Small stores to align: tokens of a pivot and its source, and invented rows of the source."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from resealed import seal_again
from stages_here import tokenize_run

from fusechat.config import RunConfig, load_config
from fusechat.storage import artifact
from fusechat.storage.contracts import id_dtype
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens_reader import read_tokens


def prepared(run_file: Path, *overrides: str) -> RunConfig:
    """A run up to its extraction: tokens of all models, invented rows of the sources."""
    config = load_config(run_file, list(overrides))
    tokenize_run(config)
    for source in config.sources:
        write_random_rows(config, source.name)
    return config


def name_other_dialogues(config: RunConfig, name: str) -> None:
    """Let a model's tokens say that they are of other dialogues."""
    tokens = read_tokens(config.tokens_url(name))
    attributes = {**tokens.attributes, "dialogues_digest": "another"}
    replace(tokens, attributes=attributes).write(config.tokens_url(name))
    seal_again(config.tokens_url(name))


def write_random_rows(config: RunConfig, name: str, seed: int = 0) -> None:
    """A finished logprobs store with invented rows, in which labels are likely."""
    tokens, rng = read_tokens(config.tokens_url(name)), np.random.default_rng(seed)
    vocab_size, k, url = int(tokens.attributes["vocab_size"]), config.extraction.k, config.logprobs_url(name)
    parents = {"tokens": artifact.load(config.tokens_url(name), "tokens")}
    claim = artifact.claim(url, "logprobs", settings={"seed": seed}, parents=parents)
    store = RowStore.create(
        url, "logprobs", tokens.layout(config.extraction.shard_tokens), k=k, vocab_size=vocab_size,
        logprob_step=config.extraction.logprob_step, settings={"seed": seed},
    )  # fmt: skip
    labels = tokens.token_ids[tokens.is_scored]
    ids = np.stack([rng.choice(vocab_size, k, replace=False) for _ in labels])
    place = rng.integers(0, k, len(labels))
    missing = ~(ids == labels[:, None]).any(axis=1)
    ids[missing, place[missing]] = labels[missing]
    probs = -np.sort(-rng.dirichlet(np.full(k + 1, 0.3), len(labels))[:, :k], axis=1)
    logprobs = np.log(np.maximum(probs, 1e-9)).astype(np.float32)
    own = np.take_along_axis(logprobs, np.argmax(ids == labels[:, None], axis=1)[:, None], 1)[:, 0]
    for shard in store.missing_shards():
        rows = store.layout.rows(shard)
        arrays = {
            "topk_ids": ids[rows].astype(id_dtype(vocab_size)),
            "topk_logprobs": logprobs[rows],
            "label_logprob": own[rows],
        }
        store.write_shard(shard, arrays)
    claim.finish({})


def beside(config: RunConfig, folder: Path) -> RunConfig:
    """The same run, whose tokens and logprobs are shared and whose aligned rows go to a folder of their own."""
    for name in ("tokens", "logprobs"):
        (folder / "beside").mkdir(exist_ok=True)
        (folder / "beside" / name).symlink_to(Path(config.store_url).resolve() / name)
    return config.model_copy(update={"run": config.run.model_copy(update={"store": str(folder / "beside")})})


def objects_of(folder: Path) -> dict[str, bytes]:
    """Every object of a store, by its place."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("c/**/*") if p.is_file()}
