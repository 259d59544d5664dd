"""How good an alignment is: coverage, and bits per byte lost.

In: the rows of both sides of a shard. Out: sums that add up over shards, and the figures made of them.

- Coverage: share of target rows with a distribution that the source gave (one-hot fallbacks do not count).
- Mass home: of the source rows' top-k mass, the part that found a pivot id (rows at shared boundaries).
- Bits per byte lost: between two boundaries that both tokenizers share (a segment), the aligned rows' loss on the
  pivot's labels less the source's own loss on the same bytes, over segments whose pivot rows are all real. Twice: with
  the top-k alone, its tail spread evenly over the rest of the vocabulary on both sides (`even`), and with the label
  logprobs that both stores keep (`label`).

Everything is kept per kind of text, told by the bytes of the segment: `other_scripts` holds a non-ASCII byte, `digits` a
digit, `code` one of ``{}[]<>=_;\\|&$#@^~` `` or a tab, `prose` anything else; `end_of_turn` stands apart.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusechat.errors import ArtifactError
from fusechat.storage.contracts import RowKind, says_something
from fusechat.storage.files import read_json, write_json
from fusechat.storage.seals import is_whole, sealed

from .quality_loops import COLUMNS, ROWS, TEXT_KINDS, loss_even, sum_rows, sum_segments, text_kinds
from .rows.projection import Projection
from .rows.row_arrays import VocabularyTables
from .tokens.token_alignment import SpanAlignment, TargetRows


@dataclass(frozen=True)
class ShardFigures:
    """Sums over the rows of one shard or of many."""

    sums: np.ndarray
    """float64 [TEXT_KINDS, COLUMNS]; bytes, nats, counts"""
    kinds: np.ndarray
    """int64 [RowKind]: rows"""
    chained: int
    """Rows longer than the source token they begin with."""
    apart: int = 0
    """Rows of tool calls that the source's template spells in other bytes; EMPTY."""

    def to_json(self) -> dict[str, Any]:
        return {"sums": self.sums.tolist(), "kinds": self.kinds.tolist(), "chained": self.chained, "apart": self.apart}


def measure_shard(
    pivot: TargetRows,
    source: TargetRows,
    alignment: SpanAlignment,
    arrays: dict[str, np.ndarray],
    projection: Projection,
    tables: VocabularyTables,
) -> ShardFigures:
    """Sums of one shard.

    Args:
        alignment: by spans, whatever rule made the rows: it tells the shared boundaries.
        arrays: the source's rows (logprobs contract).
    """
    sums = np.zeros((len(TEXT_KINDS), len(COLUMNS)))
    labels = text_kinds(pivot.token_ids, pivot.is_end_of_turn, tables.pivot)
    source_sizes, pivot_sizes = len(tables.source.offsets) - 1, len(tables.pivot.offsets) - 1
    losses = (
        loss_even(source.token_ids, arrays["topk_ids"], arrays["topk_logprobs"], source_sizes),
        loss_even(pivot.token_ids, projection.topk_ids, projection.topk_logprobs, pivot_sizes),
        -arrays["label_logprob"].astype(np.float64),
        -projection.label_logprob.astype(np.float64),
    )
    masses = (
        np.exp(arrays["topk_logprobs"]).sum(axis=1, dtype=np.float64),
        np.exp(projection.topk_logprobs).sum(axis=1, dtype=np.float64),
    )
    real = says_something(projection.kind)
    sum_rows(alignment.source_row, alignment.inside, labels, real, *masses, sums)
    sum_segments(pivot, alignment.source_row, alignment.inside, labels, real, *losses, sums)
    kinds = np.bincount(projection.kind, minlength=len(RowKind)).astype(np.int64)
    return ShardFigures(sums, kinds, projection.num_chained, int(pivot.is_apart.sum()))


def add_figures(parts: Iterable[ShardFigures]) -> ShardFigures:
    """Sums over all parts, one of them in memory at a time."""
    sums, kinds = np.zeros((len(TEXT_KINDS), len(COLUMNS))), np.zeros(len(RowKind), np.int64)
    chained = apart = 0
    for part in parts:
        sums, kinds = sums + part.sums, kinds + part.kinds
        chained, apart = chained + part.chained, apart + part.apart
    return ShardFigures(sums, kinds, chained, apart)


def summarise(figures: ShardFigures) -> dict[str, Any]:
    """The figures of an artifact: overall, then by kind of text."""
    kinds = {kind.name.lower(): int(figures.kinds[kind]) for kind in RowKind if figures.kinds[kind]}
    by_text = {name: _figures(sums) for name, sums in zip(TEXT_KINDS, figures.sums, strict=True) if sums[ROWS]}
    return {
        **_figures(figures.sums.sum(axis=0)), "kinds": kinds, "chained_rows": figures.chained,
        "tool_call_rows_without_source": figures.apart, "by_text": by_text,
    }  # fmt: skip


def _figures(sums: np.ndarray) -> dict[str, Any]:
    named = dict(zip(COLUMNS, sums.tolist(), strict=True))
    bits = float(np.log(2) * named["bytes"])
    return {
        "rows": int(named["rows"]),
        "coverage": _share(named["real_rows"], named["rows"]),
        "mass_home": _share(named["aligned_mass"], named["source_mass"]),
        "bits_per_byte_source": _share(named["source_nats_even"], bits),
        "bits_per_byte_lost": _share(named["aligned_nats_even"] - named["source_nats_even"], bits),
        "bits_per_byte_lost_share": _share(
            named["aligned_nats_even"] - named["source_nats_even"], named["source_nats_even"]
        ),
        "label_bits_per_byte_lost_share": _share(
            named["aligned_nats_label"] - named["source_nats_label"], named["source_nats_label"]
        ),
    }


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole else None


def figures_url(url: str, shard: int) -> str:
    """Where the sums of one shard stand in an aligned artifact."""
    return f"{url}/figures/{shard}.json"


def write_figures(url: str, shard: int, figures: ShardFigures) -> None:
    """Keep the sums of one shard beside its rows."""
    write_json(figures_url(url, shard), sealed(figures.to_json()))


def has_figures(url: str, shard: int) -> bool:
    """Whether the sums of a shard are there, as they were written."""
    try:
        return is_whole(read_json(figures_url(url, shard)))
    except ArtifactError:
        return False


def read_figures(url: str, num_shards: int) -> ShardFigures:
    """The sums of a whole aligned artifact.

    Raises:
        ArtifactError: a shard has none that hold.
    """
    return add_figures(_read_shard_figures(url, shard) for shard in range(num_shards))


def _read_shard_figures(url: str, shard: int) -> ShardFigures:
    document = read_json(figures_url(url, shard)) if has_figures(url, shard) else None
    if document is None:
        raise ArtifactError(
            f"{figures_url(url, shard)}: missing or changed since it was written; start the same command again: this shard is "
            "aligned anew"
        )
    return ShardFigures(
        np.array(document["sums"]),
        np.array(document["kinds"], np.int64),
        int(document["chained"]),
        int(document["apart"]),
    )
