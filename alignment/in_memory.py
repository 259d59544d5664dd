"""Alignment without stores: tokens of both sides and the source's rows in memory in, rows on the pivot's tokens out.

The two passes of the stage over one run of dialogues, with the stage's own functions. For notebooks and benchmarks.
"""

from typing import Any

import numpy as np

from fusechat.config import AlignmentSection
from fusechat.errors import AlignmentError
from fusechat.storage.tokens import Tokens

from .rows.project_rows import project_rows
from .rows.projection import Projection
from .rows.shard_alignment import count_dialogues
from .tokens.token_alignment import align_spans, both_target_rows
from .vocabulary.vocabulary_file import Vocabularies, make_vocabularies, released_texts


def map_vocabularies(
    rules: AlignmentSection, tokens: tuple[Tokens, Tokens], tokenizers: tuple[Any, Any]
) -> Vocabularies:
    """Counts over all dialogues, and the vocabularies mapped by them.

    Args:
        tokens, tokenizers: of the pivot and of the source.
    """
    pivot, source = tokens
    shape = int(source.attributes["vocab_size"]), int(pivot.attributes["vocab_size"])
    texts = released_texts(*tokenizers, shape) if rules.token_rule == "released" else None
    counts = count_dialogues(pivot, source, range(pivot.num_dialogues), shape, texts)
    return make_vocabularies(*tokenizers, counts, rules, texts)


def align_rows(
    rules: AlignmentSection,
    tokens: tuple[Tokens, Tokens],
    tokenizers: tuple[Any, Any],
    rows: dict[str, np.ndarray],
    *,
    same_tokenizer: bool = False,
) -> Projection:
    """Lay a source's rows on the pivot's tokens.

    Args:
        tokens, tokenizers: of the pivot and of the source, for the same dialogues.
        rows: `topk_ids` [source rows, k], `topk_logprobs` float32 [source rows, k], `label_logprob` float32 [source rows].
        same_tokenizer: both sides have the same tokenizer files; rows of equal tokens then pass through.
    Raises:
        AlignmentError: the rows are not as many as the source's scored tokens.
    """
    pivot, source = tokens
    if len(rows["label_logprob"]) != source.num_rows:
        raise AlignmentError(
            f"found {len(rows['label_logprob']):,} rows, expected {source.num_rows:,}, one for each scored token of the "
            "source; score these dialogues with the source"
        )
    everything = range(pivot.num_dialogues)
    sides = both_target_rows(pivot, source, everything)
    vocabularies = map_vocabularies(rules, tokens, tokenizers)
    return project_rows(rules, tokens, sides, align_spans(*sides), rows, vocabularies, same_tokenizer=same_tokenizer)
