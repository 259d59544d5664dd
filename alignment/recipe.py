"""What decides an aligned store: names, rules and the form of its rows in, a recipe out."""

from fusechat.config import AlignmentSection, ExtractionSection
from fusechat.config.recipe import Recipe


def recipe(pivot: str, source: str, section: AlignmentSection, rows: ExtractionSection) -> Recipe:
    """The recipe of a source's aligned store.

    Args:
        pivot, source: names of the models.
        rows: k, grid and shards of the rows, which the aligned ones share.
    """
    settings = {
        **section.model_dump(mode="json"),
        "pivot_name": pivot,
        "source_name": source,
        "k": rows.k,
        "logprob_step": rows.logprob_step,
        "shard_tokens": rows.shard_tokens,
    }
    parents = {
        "pivot_tokens": f"tokens/{pivot}",
        "source_tokens": f"tokens/{source}",
        "logprobs": f"logprobs/{source}",
    }
    return Recipe(settings, parents)
