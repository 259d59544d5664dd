"""The door of alignment: tokens of the pivot and a source and the source's rows in, an aligned store out.

Two passes: the first counts which tokens begin at the same byte, over the tokens alone, and maps the vocabularies; the
second lays every row on the pivot's tokens, shard by shard. `run` does both in this process and resumes where it was
left. `cluster.alignment` does the same on Ray with the same pieces: `claim_store`, `map_vocabularies` and `finish` once
in the driver, a `ShardCounter` and then a `ShardAligner` per worker.
"""

from typing import Any

from fusechat.config import RunConfig
from fusechat.errors import AlignmentError
from fusechat.models.process_memory import give_memory_back
from fusechat.progress import Progress, ShardLog
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact, Claim
from fusechat.storage.damage import sweep
from fusechat.storage.lease import held
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens import TokensReader

from .quality import read_figures, summarise
from .rows.shard_alignment import ShardAligner, ShardCounter, open_both_tokens, tokenizer_of
from .tokens.cooccurrence import Cooccurrence, merge_counts
from .vocabulary.vocabulary_file import (
    has_vocabularies,
    load_vocabularies,
    make_vocabularies,
    released_texts,
    save_vocabularies,
)


def run(config: RunConfig, source_name: str, *, progress: Progress | None = None) -> Artifact:
    """Align every missing shard of one source, here, one after the other.

    Raises:
        ArtifactError: tokens or rows are missing, or another plan's work stands in the folder.
        AlignmentError: the two tokenizations are not of the same dialogues.
        BusyError: another driver is writing the store.
    """
    progress = progress or Progress(quiet=True)
    with held(config.aligned_url(source_name), config.run.if_changed):
        claim, store = claim_store(config, source_name)
        if claim.artifact is not None:
            return claim.artifact
        align_here(config, source_name, store, progress=progress)
        return finish(claim, store)


def align_here(config: RunConfig, source_name: str, store: RowStore, *, progress: Progress) -> None:
    """Map the vocabularies and align every missing shard of a claimed store in this process."""
    if not has_vocabularies(store.url):
        tokenizers = open_tokenizers(config, source_name)  # before counting: loading one takes the most memory of all
        counter = ShardCounter(config.dump(), source_name)
        counter.start()
        counts: list[Cooccurrence] = []
        with progress.task(f"count {source_name}", store.plan.num_dialogues, "dialogues") as task:
            for shard in range(store.plan.num_shards):
                found = counter.run_shard(shard)
                counts = [merge_counts([*counts, found["counts"]])]
                task.advance(found["dialogues"])
        map_vocabularies(config, store, source_name, counts[0], tokenizers, progress=progress)
    if missing := store.missing_shards():
        aligner = ShardAligner(config.dump(), source_name)
        aligner.start()
        log = ShardLog(config.log_path(f"align.{source_name}"), source_name)
        with progress.task(f"align {source_name}", store.plan.num_rows, "rows", done=rows_done(store)) as task:
            for shard in missing:
                result = aligner.run_shard(shard)
                task.advance(result["rows"])
                log.done({"shard": shard, **result})


def claim_store(config: RunConfig, source_name: str) -> tuple[Claim, RowStore]:
    """Claim the aligned folder and open its store. One process does this before any shard is counted or aligned.

    Raises:
        ArtifactError, AlignmentError: as `run`.
    """
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
    pivot, source = open_both_tokens(config, source_name)
    _check_dialogues(pivot, source, source_name)
    store = RowStore.create(
        url, "aligned", pivot.plan(config.extraction.shard_tokens), k=config.extraction.k,
        vocab_size=int(pivot.attributes["vocab_size"]), logprob_step=config.extraction.logprob_step,
        settings={**settings, "parents": {role: parent.fingerprint for role, parent in parents.items()}},
    )  # fmt: skip
    return claim, store


def open_tokenizers(config: RunConfig, source_name: str) -> tuple[Any, Any]:
    """The tokenizers of the pivot and of a source, as their tokens were made."""
    pivot, source = open_both_tokens(config, source_name)
    return tokenizer_of(pivot), tokenizer_of(source)


def map_vocabularies(
    config: RunConfig,
    store: RowStore,
    source_name: str,
    counts: Cooccurrence,
    tokenizers: tuple[Any, Any],
    *,
    progress: Progress | None = None,
) -> None:
    """Map the vocabularies of a claimed store and keep the tables in it; all shards read them.

    Args:
        counts: over all dialogues.
        tokenizers: from `open_tokenizers`.
    """
    pivot, source = tokenizers
    released = config.alignment.token_rule == "released"
    texts = released_texts(pivot, source, counts.shape) if released else None
    save_vocabularies(store.url, make_vocabularies(pivot, source, counts, config.alignment, texts))
    give_memory_back()
    (progress or Progress(quiet=True)).say(
        f"align {source_name}: {len(counts.counts):,} pairs of tokens counted, vocabularies mapped"
    )


def rows_done(store: RowStore) -> int:
    """Rows of the shards that are written."""
    return store.plan.num_rows_of(store.present_shards())


def finish(claim: Claim, store: RowStore) -> Artifact:
    """Write the record of a store that has all its shards, with its figures."""
    sweep(store)
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


def _check_dialogues(pivot: TokensReader, source: TokensReader, name: str) -> None:
    digests = [tokens.attributes["dialogues_digest"] for tokens in (pivot, source)]
    if digests[0] != digests[1] or pivot.num_dialogues != source.num_dialogues:
        raise AlignmentError(
            f"{name}: its tokens are of dialogues {digests[1]} ({source.num_dialogues}), the pivot's of {digests[0]} "
            f"({pivot.num_dialogues}); expected the same dialogues: tokenize both again"
        )
