"""The door of alignment: tokens of the pivot and a source and the source's rows in, an aligned store out.

Two passes: the first counts which tokens begin at the same byte, over the tokens alone, and maps the vocabularies; the
second lays every row on the pivot's tokens, shard by shard. `run` does both in this process and resumes where it was
left. On Ray, `cluster/` uses the same pieces: `claim_store` once in the driver (its counting may be given in parts by
`shard_alignment.count_dialogues` and `cooccurrence.merge_counts`), a ShardAligner per worker or `align_shard`, and
`finish` at the end.
"""

import json
from functools import lru_cache
from typing import Any

from fusechat import artifact
from fusechat.artifact import Artifact, Claim
from fusechat.chat_template import load_tokenizer
from fusechat.config import RunConfig
from fusechat.errors import AlignmentError
from fusechat.logs import Progress
from fusechat.store import RowStore
from fusechat.tokens import Tokens

from .cooccurrence import Cooccurrence, merge_counts
from .quality import read_figures, summarise
from .shard_alignment import ShardAligner, count_dialogues
from .vocabulary_file import has_vocabularies, load_vocabularies, make_vocabularies, released_texts, save_vocabularies


def run(config: RunConfig, source_name: str, *, progress: Progress | None = None) -> Artifact:
    """Align every missing shard of one source.

    Raises:
        ArtifactError: tokens or rows are missing, or another plan's work stands in the folder.
        AlignmentError: the two tokenizations are not of the same dialogues.
    """
    progress = progress or Progress(quiet=True)
    claim, store = claim_store(config, source_name, progress=progress)
    if claim.artifact is not None:
        return claim.artifact
    missing = store.missing_shards()
    if missing:
        aligner = ShardAligner(config.dump(), source_name)
        aligner.start()
        done = store.plan.num_rows - sum(
            store.plan.rows(shard).stop - store.plan.rows(shard).start for shard in missing
        )
        with progress.task(f"align {source_name}", store.plan.num_rows, "rows", done=done) as task:
            for shard in missing:
                task.advance(aligner.run_shard(shard)["rows"])
    return finish(claim, store)


def claim_store(
    config: RunConfig, source_name: str, *, counts: Cooccurrence | None = None, progress: Progress | None = None
) -> tuple[Claim, RowStore]:
    """Claim the aligned folder, count and map the vocabularies if that is not done, and open the store.

    One process does this before any shard is aligned.

    Args:
        counts: over all dialogues, if they were counted elsewhere; default: counted here.
    """
    progress = progress or Progress(quiet=True)
    pivot_name, url = config.pivot.name, config.aligned_url(source_name)
    parents = {
        "pivot_tokens": artifact.load(config.tokens_url(pivot_name), "tokens"),
        "source_tokens": artifact.load(config.tokens_url(source_name), "tokens"),
        "logprobs": artifact.load(config.logprobs_url(source_name), "logprobs"),
    }
    settings = {
        **config.alignment.model_dump(mode="json"),
        "pivot_name": pivot_name,
        "source_name": source_name,
        "k": config.extraction.k,
        "logprob_step": config.extraction.logprob_step,
        "shard_tokens": config.extraction.shard_tokens,
    }
    claim = artifact.claim(url, "aligned", settings=settings, parents=parents, if_changed=config.run.if_changed)
    pivot, source = Tokens.read(config.tokens_url(pivot_name)), Tokens.read(config.tokens_url(source_name))
    _check_dialogues(pivot, source, source_name)
    store = RowStore.create(
        url, "aligned", pivot.plan(config.extraction.shard_tokens), k=config.extraction.k,
        vocab_size=int(pivot.attributes["vocab_size"]), logprob_step=config.extraction.logprob_step,
        settings={**settings, "parents": {role: parent.fingerprint for role, parent in parents.items()}},
    )  # fmt: skip
    if claim.artifact is None and not has_vocabularies(url):
        _map_vocabularies(config, store, pivot, source, source_name, counts, progress)
    return claim, store


def finish(claim: Claim, store: RowStore) -> Artifact:
    """Write the record of a store that has all its shards, with its figures."""
    vocabularies = load_vocabularies(store.url)
    return claim.finish(
        {
            "shards": store.plan.num_shards,
            "dialogues": store.plan.num_dialogues,
            **summarise(read_figures(store.url, store.plan.num_shards)),
            "vocabulary_map": vocabularies.origin_counts(),
            "counted_pairs": len(vocabularies.counts.counts),
            "bytes": store.num_bytes(),
        }
    )


def align_shard(config: dict[str, Any], source_name: str, shard: int) -> dict[str, int]:
    """Align one shard of a claimed store; a plain function for whoever schedules shards.

    Args:
        config: `RunConfig.dump()`.
    Returns:
        rows and tokens of the shard.
    """
    return _aligner(json.dumps(config, sort_keys=True), source_name).run_shard(shard)


def count_shard(config: RunConfig, source_name: str, shard: int) -> Cooccurrence:
    """Counts of one shard's dialogues (span rule), for counting in parallel."""
    pivot, source = _read_tokens(config.tokens_url(config.pivot.name)), _read_tokens(config.tokens_url(source_name))
    dialogues = pivot.plan(config.extraction.shard_tokens).dialogues(shard)
    return count_dialogues(pivot, source, dialogues, _shape(pivot, source))


def _map_vocabularies(
    config: RunConfig,
    store: RowStore,
    pivot: Tokens,
    source: Tokens,
    name: str,
    counts: Cooccurrence | None,
    progress: Progress,
) -> None:
    tokenizers = [
        load_tokenizer(
            str(tokens.attributes["model"]),
            revision=tokens.attributes["revision"],
            template=tokens.attributes["template"],
        )[0]
        for tokens in (pivot, source)
    ]
    shape = _shape(pivot, source)
    texts = released_texts(*tokenizers, shape) if config.alignment.token_rule == "released" else None
    if counts is None:
        parts: list[Cooccurrence] = []
        with progress.task(f"count {name}", store.plan.num_dialogues, "dialogues") as task:
            for shard in range(store.plan.num_shards):
                dialogues = store.plan.dialogues(shard)
                part = count_dialogues(pivot, source, dialogues, shape, texts)
                parts = [merge_counts([*parts, part])]
                task.advance(len(dialogues))
        counts = parts[0]
    save_vocabularies(store.url, make_vocabularies(*tokenizers, counts, config.alignment, texts))
    progress.say(f"align {name}: {len(counts.counts):,} pairs of tokens counted, vocabularies mapped")


def _check_dialogues(pivot: Tokens, source: Tokens, name: str) -> None:
    digests = [tokens.attributes["dialogues_digest"] for tokens in (pivot, source)]
    if digests[0] != digests[1] or pivot.num_dialogues != source.num_dialogues:
        raise AlignmentError(
            f"{name}: its tokens are of dialogues {digests[1]} ({source.num_dialogues}), the pivot's of {digests[0]} "
            f"({pivot.num_dialogues}); expected the same dialogues: tokenize both again"
        )


def _shape(pivot: Tokens, source: Tokens) -> tuple[int, int]:
    return int(source.attributes["vocab_size"]), int(pivot.attributes["vocab_size"])


_read_tokens = lru_cache(maxsize=2)(Tokens.read)


@lru_cache(maxsize=1)
def _aligner(config: str, source_name: str) -> ShardAligner:
    """A started aligner, kept for the next shard of the same run (`config`: JSON)."""
    aligner = ShardAligner(json.loads(config), source_name)
    aligner.start()
    return aligner
