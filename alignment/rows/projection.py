"""Source rows in, pivot rows out: whole shards at once, in compiled loops.

Knows nothing about files or tokenizers: it reads the arrays of the contract, the span alignment and `VocabularyTables`.
Two row rules:

- `chain` (default) keeps what the source said about the text, not about its tokens. Between two pivot boundaries it
  carries the weights of everything the source could have written so far: the path of its own tokens (known: teacher
  forcing) and every top-k candidate that spells the bytes read so far in the pivot's tokens. A row is what those
  would write next; the label's probability is the share that goes on with it. So the product of the label's
  probabilities over a text is the source's own (the chain rule), inside a source token the row is conditioned on the
  bytes already read, and a pivot token longer than a source token collects the product of its parts. Candidates whose
  going on is unknown stay in the tail.
- `map` is the plain map of each row where both tokenizers have a boundary; elsewhere there is no row. Probabilities of
  two source ids with one image add up.
"""

from typing import NamedTuple

import numpy as np

from fusechat.storage.contracts import RowKind

from ..tokens.token_alignment import SpanAlignment, TargetRows
from .chain_candidates import ChainInputs
from .chain_loops import walk_chain
from .compiled import compiled
from .row_arrays import PivotRows, SourceRows, VocabularyTables, empty_rows
from .row_masses import Scratch, add_mass, clear_masses, new_scratch, write_row

_MAPPED, _END = int(RowKind.MAPPED), int(RowKind.END_OF_TURN)


class Projection(NamedTuple):
    """Pivot rows (`PivotRows`), and how many are chained."""

    topk_ids: np.ndarray
    """int32 [pivot rows, k]"""
    topk_logprobs: np.ndarray
    """float32 [pivot rows, k], nats, descending, -inf padded"""
    label_logprob: np.ndarray
    """float32 [pivot rows], nats; NaN in EMPTY rows"""
    kind: np.ndarray
    """uint8 [pivot rows], RowKind"""
    num_chained: int
    """Rows whose pivot token is longer than the source token it begins with."""


def project_chain(
    pivot: TargetRows, source: TargetRows, alignment: SpanAlignment, rows: SourceRows, tables: VocabularyTables, k: int
) -> Projection:
    """Pivot rows by the chain rule over the bytes.

    Args:
        pivot, source: target rows of the same dialogues; `rows` are the source's.
        k: entries of each pivot row; the label always is one of them.
    """
    out = empty_rows(pivot.num_rows, k)
    scratch = new_scratch(len(tables.pivot.offsets) - 1, rows.topk_ids.shape[1])
    num_chained = walk_chain(ChainInputs(pivot, source, alignment, rows, tables), scratch, out)
    return Projection(*out, num_chained)


def project_map(
    pivot: TargetRows, alignment: SpanAlignment, rows: SourceRows, source_to_pivot: np.ndarray, vocab_size: int, k: int
) -> Projection:
    """Pivot rows by the plain map of the source row at the same boundary.

    A label outside the row's entries gets an even share of the tail.

    Args:
        source_to_pivot: int32 [source vocabulary], -1: unmapped.
        vocab_size: of the pivot.
    """
    out = empty_rows(pivot.num_rows, k)
    scratch = new_scratch(vocab_size, rows.topk_ids.shape[1])
    _walk_map(pivot, alignment, rows, source_to_pivot, vocab_size, scratch, out)
    return Projection(*out, 0)


def pass_through(arrays: dict[str, np.ndarray], k: int) -> Projection:
    """Rows of a source with the pivot's tokenizer, cut or padded to k."""
    ids, logprobs = arrays["topk_ids"].astype(np.int32)[:, :k], arrays["topk_logprobs"].astype(np.float32)[:, :k]
    if (missing := k - ids.shape[1]) > 0:
        ids = np.pad(ids, ((0, 0), (0, missing)))
        logprobs = np.pad(logprobs, ((0, 0), (0, missing)), constant_values=-np.inf)
    kind = np.full(len(ids), RowKind.IDENTITY, np.uint8)
    return Projection(ids, logprobs, arrays["label_logprob"], kind, 0)


@compiled
def _walk_map(
    pivot: TargetRows,
    alignment: SpanAlignment,
    rows: SourceRows,
    source_to_pivot: np.ndarray,
    vocab_size: int,
    scratch: Scratch,
    out: PivotRows,
) -> None:
    """Write the pivot rows that begin where a source row begins.

    Args:
        source_to_pivot: int32 [source vocabulary], -1: unmapped.
    """
    k = out.topk_ids.shape[1]
    for i in range(len(pivot.token_ids)):
        j = alignment.source_row[i]
        if j < 0 or alignment.inside[i] > 0:
            continue
        ids, logprobs, label = out.topk_ids[i], out.topk_logprobs[i], pivot.token_ids[i]
        clear_masses(scratch)
        for c in range(rows.topk_ids.shape[1]):
            add_mass(scratch, source_to_pivot[rows.topk_ids[j, c]], rows.topk_probs[j, c])
        write_row(scratch, -1, ids, logprobs)
        mass = 0.0
        for c in range(k):
            mass += np.exp(logprobs[c])
            if ids[c] == label and logprobs[c] > -np.inf:
                out.label_logprob[i] = logprobs[c]
        if np.isnan(out.label_logprob[i]):
            out.label_logprob[i] = np.log(max(1.0 - mass, 1e-12) / max(vocab_size - k, 1))
        out.kind[i] = _END if pivot.is_end_of_turn[i] else _MAPPED
