"""The door of alignment: tokens of the pivot and a source and the source's rows in, an aligned store out.

Two works, the second after the first: the first counts which tokens begin at the same byte, over the tokens alone, and
maps the vocabularies; the second lays every row on the pivot's tokens, shard by shard. `cluster.alignment` does them on Ray
where there is something to share out, else in its own process; the bytes are the same.
"""

from functools import partial
from typing import Any

from fusechat.config import AlignmentSection, ExtractionSection, ModelSection
from fusechat.config.layout import RunLayout
from fusechat.config.recipe import Recipe
from fusechat.errors import AlignmentError
from fusechat.models.process_memory import give_memory_back
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact, Claim
from fusechat.storage.damage import check_finished
from fusechat.storage.row_store import RowStore
from fusechat.storage.store_work import store_work
from fusechat.storage.tokens_reader import TokensReader
from fusechat.storage.work import Listener, Needs, UnitLog, Work, done_before

from .quality import has_figures, read_figures, summarise
from .recipe import recipe
from .rows.shard_alignment import AlignmentInputs, ShardAligner, ShardCounter
from .tokens.cooccurrence import Cooccurrence, merge_counts
from .vocabulary.vocabulary_file import (
    has_vocabularies,
    load_vocabularies,
    make_vocabularies,
    released_texts,
    save_vocabularies,
)

ONE_CPU = Needs(cpus=1, units_in_flight=2)
"""Two units per worker: one at work and one that waits, so that none waits for the driver."""


def prepare(
    layout: RunLayout, pivot: ModelSection, source: ModelSection, section: AlignmentSection, rows: ExtractionSection, *,
    progress: Progress | None = None,
) -> list[Work]:  # fmt: skip
    """Claim the aligned folder; give what is left of it: counting, if the vocabularies are not mapped yet, then aligning.

    Args:
        rows: k, grid and shards of the rows, which the aligned ones share.
        progress: told when the vocabularies are mapped.
    Raises:
        ArtifactError: tokens or rows are missing, or another recipe's work stands in the folder.
        AlignmentError: the two tokenizations are not of the same dialogues.
    """
    inputs = alignment_inputs(layout, pivot, source, section)
    claim, store = claim_store(layout, inputs, recipe(pivot.name, source.name, section, rows))
    if claim.artifact is not None:
        return [done_before(f"align {source.name}", claim.artifact)]
    present = store.present_shards()
    missing = [
        shard for shard in range(store.layout.num_shards) if shard not in present or not has_figures(store.url, shard)
    ]
    align = store_work(
        f"align {source.name}", store, partial(ShardAligner, inputs), partial(finish, claim, store),
        needs=ONE_CPU, log=UnitLog(layout.log_path(f"align.{source.name}"), source.name), missing=missing,
    )  # fmt: skip
    if has_vocabularies(store.url):
        return [align]
    return [_count(inputs, store, progress or Progress(quiet=True)), align]


def alignment_inputs(
    layout: RunLayout, pivot: ModelSection, source: ModelSection, section: AlignmentSection
) -> AlignmentInputs:
    """What the workers of one source are told."""
    return AlignmentInputs(
        pivot=pivot,
        source=source,
        pivot_tokens=layout.tokens_url(pivot.name),
        source_tokens=layout.tokens_url(source.name),
        rows=layout.logprobs_url(source.name),
        aligned=layout.aligned_url(source.name),
        rules=section,
    )


class CountListener(Listener):
    """Adds up the counts of all shards as they come: their order does not matter."""

    def __init__(self, inputs: AlignmentInputs) -> None:
        self._inputs = inputs
        self._counts: list[Cooccurrence] = []
        self._num_waiting = 0
        self.tokenizers: tuple[Any, Any] | None = None

    def on_started(self) -> None:
        """Open the tokenizers: loading one takes the most memory of all, so it comes before the counts."""
        self.tokenizers = self._inputs.open_tokenizers()

    def on_done(self, result: dict[str, Any]) -> None:
        self._counts.append(result["counts"])
        self._num_waiting += len(result["counts"].counts)
        # Those that wait are merged when they are as many as the sum so far: each shard would else go through all of it.
        if self._num_waiting >= len(self._counts[0].counts):
            self._merge()

    def _merge(self) -> None:
        self._counts, self._num_waiting = [merge_counts(self._counts)], 0

    @property
    def counts(self) -> Cooccurrence:
        """Of the dialogues that were counted."""
        self._merge()
        return self._counts[0]


def _count(inputs: AlignmentInputs, store: RowStore, progress: Progress) -> Work:
    """Counting over all shards, written or not; its end is the map of the vocabularies, which all shards then read."""
    listener, source_name = CountListener(inputs), inputs.source.name

    def finish() -> list[Artifact]:
        assert listener.tokenizers is not None, "no worker has started"
        map_vocabularies(inputs, listener.counts, listener.tokenizers)
        num_pairs = len(listener.counts.counts)
        progress.say(f"align {source_name}: {num_pairs:,} pairs of tokens counted, vocabularies mapped")
        return []

    return Work(
        name=f"count {source_name}",
        missing=range(store.layout.num_shards),
        num_units=store.layout.num_shards,
        total=store.layout.num_dialogues,
        done=0,
        measure="dialogues",
        make_worker=partial(ShardCounter, inputs),
        finish=finish,
        needs=ONE_CPU,
        listener=listener,
    )


def claim_store(layout: RunLayout, inputs: AlignmentInputs, made_by: Recipe) -> tuple[Claim, RowStore]:
    """Claim the aligned folder and open its store. One process does this before any shard is counted or aligned.

    Args:
        made_by: from `recipe`.
    Raises:
        ArtifactError, AlignmentError: as `prepare`.
    """
    settings = made_by.settings
    parents = {role: artifact.load(*layout.place(key)) for role, key in made_by.parents.items()}
    claim = artifact.claim(inputs.aligned, "aligned", settings=settings, parents=parents, if_changed=layout.if_changed)
    pivot, source = inputs.open_both_tokens()
    _check_dialogues(pivot, source, settings["source_name"])
    store = RowStore.create(
        inputs.aligned, "aligned", pivot.layout(settings["shard_tokens"]), k=settings["k"],
        vocab_size=int(pivot.attributes["vocab_size"]), logprob_step=settings["logprob_step"],
        settings={**settings, "parents": {role: parent.fingerprint for role, parent in parents.items()}},
    )  # fmt: skip
    if claim.artifact is not None:
        check_finished(store)
    return claim, store


def map_vocabularies(inputs: AlignmentInputs, counts: Cooccurrence, tokenizers: tuple[Any, Any]) -> None:
    """Map the vocabularies of a claimed store and keep the tables in it; all shards read them.

    Args:
        counts: over all dialogues.
        tokenizers: from `inputs.open_tokenizers`.
    """
    pivot, source = tokenizers
    released = inputs.rules.token_rule == "released"
    texts = released_texts(pivot, source, counts.shape) if released else None
    save_vocabularies(inputs.aligned, make_vocabularies(pivot, source, counts, inputs.rules, texts))
    give_memory_back()


def finish(claim: Claim, store: RowStore) -> Artifact:
    """Write the record of a store that has all its shards, with its figures."""
    vocabularies = load_vocabularies(store.url)
    return claim.finish(
        {
            "shards": store.layout.num_shards,
            "dialogues": store.layout.num_dialogues,
            **summarise(read_figures(store.url, store.layout.num_shards)),
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
