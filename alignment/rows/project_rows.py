"""Lays the rows of some dialogues on the pivot's tokens, by the rules of a run: the one place that chooses among them."""

import numpy as np

from fusechat.config import AlignmentSection
from fusechat.storage.tokens import Tokens

from ..released.released_shard import DialogueTokens, project_shard
from ..tokens.token_alignment import SpanAlignment, TargetRows
from ..vocabulary.vocabulary_file import Vocabularies
from .projection import Projection, pass_through, project_chain, project_map
from .row_arrays import source_rows


def project_rows(
    rules: AlignmentSection,
    tokens: tuple[Tokens, Tokens],
    sides: tuple[TargetRows, TargetRows],
    spans: SpanAlignment,
    arrays: dict[str, np.ndarray],
    vocabularies: Vocabularies,
    *,
    same_tokenizer: bool,
) -> Projection:
    """Rows on the pivot's tokens and vocabulary.

    Args:
        tokens, sides: of the pivot and of the source, for the same dialogues.
        spans: where the sides meet.
        arrays: the source's rows: `topk_ids` and `topk_logprobs` [source rows, k], `label_logprob` [source rows].
        same_tokenizer: both sides have the same tokenizer files: equal tokens take the rows as they are.
    """
    pivot, source = sides
    k = arrays["topk_ids"].shape[1]
    if same_tokenizer and same_rows(pivot, source):
        return pass_through(arrays, k)
    rows, tables = source_rows(arrays), vocabularies.tables
    if rules.token_rule == "released":
        p, s = (dialogue_tokens(one, range(one.num_dialogues)) for one in tokens)
        return project_shard(p, s, rows, arrays["topk_logprobs"], vocabularies, k)
    if rules.row_rule == "map":
        return project_map(pivot, spans, rows, tables.source_to_pivot, vocabularies.vocab_size, k)
    return project_chain(pivot, source, spans, rows, tables, k)


def same_rows(pivot: TargetRows, source: TargetRows) -> bool:
    """Whether both sides have the same scored tokens at the same bytes, so that rows pass through."""
    names = ("token_ids", "starts", "ends", "offsets")
    return all(np.array_equal(getattr(pivot, name), getattr(source, name)) for name in names)


def dialogue_tokens(tokens: Tokens, dialogues: range) -> DialogueTokens:
    """All tokens of consecutive dialogues."""
    first, stop = int(tokens.offsets[dialogues.start]), int(tokens.offsets[dialogues.stop])
    offsets = tokens.offsets[dialogues.start : dialogues.stop + 1] - first
    return DialogueTokens(tokens.token_ids[first:stop], tokens.is_scored[first:stop], offsets)
