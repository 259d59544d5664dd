"""Counts and aligns one shard: tokens of both sides and the source's rows in, counts or the rows of one aligned shard out.

`ShardCounter` and `ShardAligner` are the workers of alignment's two works. They hold the tables of one source, and one shard
of tokens and rows at a time.
"""

from dataclasses import dataclass
from typing import Any

from fusechat.config import AlignmentSection, ModelSection
from fusechat.models.process_memory import give_memory_back
from fusechat.storage.contracts import id_dtype
from fusechat.storage.row_reader import RowReader
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens import Tokens
from fusechat.storage.tokens_reader import TokensReader
from fusechat.storage.work import HERE, Place
from fusechat.text.chat_template import load_tokenizer
from fusechat.text.token_process import prepare_token_process

from ..quality import measure_shard, write_figures
from ..released.released_shard import warped_pairs
from ..tokens.cooccurrence import Cooccurrence, count_ids, count_pairs
from ..tokens.token_alignment import align_spans, both_target_rows
from ..vocabulary.vocabulary_file import ReleasedTexts, load_vocabularies, released_texts
from .project_rows import dialogue_tokens, project_rows


@dataclass(frozen=True)
class AlignmentInputs:
    """All that alignment's workers are told: the models, where things lie, and the rules."""

    pivot: ModelSection
    source: ModelSection
    pivot_tokens: str
    source_tokens: str
    rows: str
    """The source's logprobs store."""
    aligned: str
    """The store that is written, which the driver has made."""
    rules: AlignmentSection

    def open_both_tokens(self) -> tuple[TokensReader, TokensReader]:
        """The pivot's tokens and the source's."""
        return TokensReader(self.pivot_tokens), TokensReader(self.source_tokens)

    def open_tokenizers(self) -> tuple[Any, Any]:
        """The tokenizers of the pivot and of the source, as their tokens were made."""
        pivot, source = self.open_both_tokens()
        return tokenizer_of(self.pivot, pivot), tokenizer_of(self.source, source)


class ShardCounter:
    """Counts shards of one source; all shards of the layout count, written or not."""

    def __init__(self, inputs: AlignmentInputs, place: Place = HERE) -> None:
        self._inputs, self._place = inputs, place

    def start(self) -> dict[str, Any]:
        """Open the tokens and the layout; decode both vocabularies for the released rule."""
        self._pivot, self._source = self._inputs.open_both_tokens()
        self._layout = RowStore.open(self._inputs.aligned, "aligned").layout
        self._shape = int(self._source.attributes["vocab_size"]), int(self._pivot.attributes["vocab_size"])
        self._texts = None
        if self._inputs.rules.token_rule == "released":
            prepare_token_process(self._place)
            self._texts = released_texts(*self._inputs.open_tokenizers(), self._shape)
        return {"shards": self._layout.num_shards}

    def run_unit(self, unit: int) -> dict[str, Any]:
        """Counts of one shard (`counts`: Cooccurrence) and its number of `dialogues`."""
        dialogues = self._layout.dialogues(unit)
        pivot, source = self._pivot.read(dialogues), self._source.read(dialogues)
        counts = count_dialogues(pivot, source, range(len(dialogues)), self._shape, self._texts)
        return {"counts": counts, "dialogues": len(dialogues)}

    def close(self) -> None:
        """Let the vocabularies go."""
        self._texts = None
        give_memory_back()


class ShardAligner:
    """Aligns shards of one source."""

    def __init__(self, inputs: AlignmentInputs, place: Place = HERE) -> None:
        self._inputs = inputs

    def start(self) -> dict[str, Any]:
        """Open tokens, tables and stores."""
        self._pivot, self._source = self._inputs.open_both_tokens()
        self._rows = RowReader(RowStore.open(self._inputs.rows, "logprobs"))
        self._store = RowStore.open(self._inputs.aligned, "aligned", mode="r+")
        self._vocabularies = load_vocabularies(self._inputs.aligned)
        self._same_tokenizer = same_tokenizer(self._pivot, self._source)
        return {"shards": self._store.layout.num_shards}

    def run_unit(self, unit: int) -> dict[str, Any]:
        """Align, measure and write one shard."""
        dialogues = self._store.layout.dialogues(unit)
        arrays = self._rows.read(dialogues)
        tokens = self._pivot.read(dialogues), self._source.read(dialogues)
        pivot, source = both_target_rows(*tokens, range(len(dialogues)))
        spans = align_spans(pivot, source)
        projection = project_rows(
            self._inputs.rules, tokens, (pivot, source), spans, arrays, self._vocabularies,
            same_tokenizer=self._same_tokenizer,
        )  # fmt: skip
        aligned = {
            "topk_ids": projection.topk_ids.astype(id_dtype(self._vocabularies.vocab_size)),
            "topk_logprobs": projection.topk_logprobs,
            "label_logprob": projection.label_logprob,
            "kind": projection.kind,
        }
        figures = measure_shard(pivot, source, spans, arrays, projection, self._vocabularies.tables)
        write_figures(self._inputs.aligned, unit, figures)
        self._store.write_shard(unit, aligned)
        return {"rows": pivot.num_rows, "tokens": tokens[0].num_tokens}

    def close(self) -> None:
        """Let the tables go."""
        del self._vocabularies, self._rows
        give_memory_back()


def tokenizer_of(model: ModelSection, tokens: TokensReader) -> Any:
    """The tokenizer that made a model's tokens; the model may have moved since."""
    tokenizer, _ = load_tokenizer(model.model, revision=model.revision, template=tokens.attributes["template"])
    give_memory_back()
    return tokenizer


def same_tokenizer(pivot: TokensReader, source: TokensReader) -> bool:
    """Whether both sides were cut by the same tokenizer files into the same vocabulary."""
    return all(pivot.attributes[key] == source.attributes[key] for key in ("tokenizer", "vocab_size"))


def count_dialogues(
    pivot: Tokens, source: Tokens, dialogues: range, shape: tuple[int, int], texts: ReleasedTexts | None = None
) -> Cooccurrence:
    """Co-occurrence counts of consecutive dialogues; any split into ranges adds up to the same.

    Args:
        shape: (source vocabulary, pivot vocabulary).
        texts: for pairs by the released warping; None: pairs by spans.
    """
    if texts is not None:
        p, s = (dialogue_tokens(tokens, dialogues) for tokens in (pivot, source))
        return count_ids(*warped_pairs(p, s, texts), shape)
    p_rows, s_rows = both_target_rows(pivot, source, dialogues)
    return count_pairs(p_rows, s_rows, align_spans(p_rows, s_rows), shape)
