"""The held-out dialogues' rows of a source on the pivot's tokens: its held-out store in, an aligned store out.

The vocabularies are those that the training dialogues mapped: what the held-out ones say is measured as training used it.
"""

from functools import partial

from fusechat.config import AlignmentSection, ExtractionSection, ModelSection
from fusechat.config.layout import RunLayout
from fusechat.config.recipe import Recipe
from fusechat.storage.store_work import store_work
from fusechat.storage.work import UnitLog, Work, done_before

from .recipe import recipe as training_recipe
from .rows.shard_alignment import AlignmentInputs, ShardAligner
from .stage import ONE_CPU, claim_store, finish
from .vocabulary.vocabulary_file import has_vocabularies, load_vocabularies, save_vocabularies


def prepare(
    layout: RunLayout, pivot: ModelSection, source: ModelSection, section: AlignmentSection, rows: ExtractionSection
) -> list[Work]:
    """Claim the folder; give what is left of it as one work.

    Args:
        source: has a finished aligned store and finished rows on the held-out dialogues.
    Raises:
        ArtifactError, AlignmentError: as `alignment.stage.prepare`.
    """
    inputs = AlignmentInputs(
        pivot=pivot,
        source=source,
        pivot_tokens=layout.tokens_url(pivot.name, "held_out"),
        source_tokens=layout.tokens_url(source.name, "held_out"),
        rows=layout.held_out_url(f"source.{source.name}"),
        aligned=layout.held_out_aligned_url(source.name),
        rules=section,
    )
    claim, store = claim_store(layout, inputs, recipe(pivot.name, source.name, section, rows))
    name = f"align {source.name} held_out"
    if claim.artifact is not None:
        return [done_before(name, claim.artifact)]
    if not has_vocabularies(store.url):
        save_vocabularies(store.url, load_vocabularies(layout.aligned_url(source.name)))
    log = UnitLog(layout.log_path(f"align.{source.name}.held_out"), source.name)
    made_by, finished_by = partial(ShardAligner, inputs), partial(finish, claim, store)
    return [store_work(name, store, made_by, finished_by, needs=ONE_CPU, log=log)]


def recipe(pivot: str, source: str, section: AlignmentSection, rows: ExtractionSection) -> Recipe:
    """What decides the store: the training rows' recipe, over the held-out rows and the vocabularies that stand with those."""
    parents = {
        "pivot_tokens": f"tokens/{pivot}.held_out",
        "source_tokens": f"tokens/{source}.held_out",
        "logprobs": f"held_out/source.{source}",
        "vocabularies": f"aligned/{source}",
    }
    return Recipe(training_recipe(pivot, source, section, rows).settings, parents)
