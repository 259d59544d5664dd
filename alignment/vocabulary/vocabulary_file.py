"""What aligning two vocabularies takes, made once per pair and kept in the aligned artifact as `vocabulary.npz`.

In: two tokenizers and the counts. Out: the vocabulary map, the counts, and the tables of the compiled loops. The file
holds plain numpy arrays: `source_to_pivot`, `origin` (vocabulary_mapping.Origin), the counts as `count_source_ids`,
`count_pivot_ids`, `counts`; what the ids spell; for the released mode the decoded texts.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import fsspec
import numpy as np

from fusechat.config import AlignmentSection
from fusechat.errors import ArtifactError
from fusechat.storage.files import write_bytes
from fusechat.storage.write_errors import storage_errors
from fusechat.text.token_surface import token_surfaces

from ..released.released import candidate_map, word_start_mark
from ..rows.row_arrays import VocabularyTables, make_tables
from ..tokens.cooccurrence import Cooccurrence
from .piece_segmentation import Segments, encode_pieces, pivot_trie, segment_pieces
from .vocabulary_mapping import VocabularyMap, build_map
from .vocabulary_trie import Surfaces, Trie, flatten_surfaces

FILE_NAME = "vocabulary.npz"


class ReleasedTexts(NamedTuple):
    """What the released mode compares."""

    pivot: list[str]
    """Decoded text of each pivot id."""
    source: list[str]
    marks: tuple[str, str]
    """Word-start marks of the pivot and the source."""


@dataclass(frozen=True)
class Vocabularies:
    """The pair of vocabularies of an aligned artifact."""

    tables: VocabularyTables
    origin: np.ndarray
    """uint8 [source vocabulary], Origin"""
    counts: Cooccurrence
    texts: ReleasedTexts | None
    """In the released mode only."""

    @property
    def vocab_size(self) -> int:
        """Of the pivot."""
        return len(self.tables.pivot.offsets) - 1

    def origin_counts(self) -> dict[str, int]:
        """Source ids per way in which they found their pivot id."""
        return VocabularyMap(self.tables.source_to_pivot, self.origin).counts()


def released_texts(pivot_tokenizer: Any, source_tokenizer: Any, shape: tuple[int, int]) -> ReleasedTexts:
    """Decoded texts and word-start marks; `shape`: (source vocabulary, pivot vocabulary)."""
    marks = (word_start_mark(_pieces(pivot_tokenizer, shape[1])), word_start_mark(_pieces(source_tokenizer, shape[0])))
    return ReleasedTexts(_decoded(pivot_tokenizer, shape[1]), _decoded(source_tokenizer, shape[0]), marks)


def make_vocabularies(
    pivot_tokenizer: Any,
    source_tokenizer: Any,
    counts: Cooccurrence,
    section: AlignmentSection,
    texts: ReleasedTexts | None,
) -> Vocabularies:
    """Map the vocabularies and lay out the tables.

    Args:
        counts: over the whole corpus; its shape is the two models' vocabularies.
        texts: in the released mode.
    """
    source_size, pivot_size = counts.shape
    pivot_bytes, source_bytes = token_surfaces(pivot_tokenizer), token_surfaces(source_tokenizer)
    trie = pivot_trie(pivot_bytes, pivot_tokenizer, pivot_size)
    segments = segment_pieces(
        source_bytes, encode_pieces(source_bytes, pivot_tokenizer, pivot_bytes), trie, source_size
    )
    if section.vocabulary_rule == "released":
        p_pieces, s_pieces = _pieces(pivot_tokenizer, pivot_size), _pieces(source_tokenizer, source_size)
        mapped = build_map(
            counts.matrix(), s_pieces, p_pieces, rule="released", default_id=_default_id(pivot_tokenizer),
            fixed=_fixed_ids(pivot_tokenizer, source_tokenizer),
        )  # fmt: skip
    else:
        mapped = build_map(counts.matrix(), source_bytes, pivot_bytes, rule=section.vocabulary_rule, segments=segments)
    source_to_pivot = mapped.source_to_pivot
    if texts is not None:
        source_to_pivot = candidate_map(
            source_to_pivot,
            _pieces(source_tokenizer, source_size),
            pivot_tokenizer.get_vocab(),
            pivot_mark=texts.marks[0],
            source_mark=texts.marks[1],
        )
    tables = make_tables(
        flatten_surfaces(source_bytes, source_size),
        flatten_surfaces(pivot_bytes, pivot_size),
        trie,
        segments,
        source_to_pivot,
    )
    return Vocabularies(tables, mapped.origin, counts, texts)


def save_vocabularies(url: str, vocabularies: Vocabularies) -> None:
    """Write `vocabulary.npz` into an artifact folder, local or on an object store."""
    t, c = vocabularies.tables, vocabularies.counts
    texts = vocabularies.texts or ReleasedTexts([], [], ("", ""))
    buffer = io.BytesIO()
    np.savez(
        buffer, source_to_pivot=t.source_to_pivot, origin=vocabularies.origin, count_source_ids=c.source_ids,
        count_pivot_ids=c.pivot_ids, counts=c.counts, count_shape=np.array(c.shape), source_bytes=t.source.data,
        source_offsets=t.source.offsets, pivot_bytes=t.pivot.data, pivot_offsets=t.pivot.offsets, trie_first_child=t.trie.first_child,
        trie_bytes=t.trie.bytes, trie_token_ids=t.trie.token_ids, segment_ids=t.segments.token_ids,
        segment_offsets=t.segments.offsets, pivot_texts=_pack(texts.pivot), source_texts=_pack(texts.source),
        marks=np.array(texts.marks),
    )  # fmt: skip
    write_bytes(f"{url}/{FILE_NAME}", buffer.getvalue())


def load_vocabularies(url: str) -> Vocabularies:
    """Read `vocabulary.npz` of an artifact folder.

    Raises:
        ArtifactError: there is none, or it is damaged (its parts carry checksums).
    """
    try:
        with storage_errors(url), fsspec.open(f"{url}/{FILE_NAME}", "rb") as file:
            stored = dict(np.load(io.BytesIO(file.read())))
    except FileNotFoundError:
        raise ArtifactError(f"{url}: found no {FILE_NAME}; run align again, it counts first") from None
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, struct.error, NotImplementedError) as error:
        # NotImplementedError: zipfile's word for a compression that it does not know, which a flipped byte can name.
        raise ArtifactError(
            f"{url}: {FILE_NAME} is damaged ({error}); start the same command again: it counts first"
        ) from None
    tables = make_tables(
        Surfaces(stored["source_bytes"], stored["source_offsets"]),
        Surfaces(stored["pivot_bytes"], stored["pivot_offsets"]),
        Trie(stored["trie_first_child"], stored["trie_bytes"], stored["trie_token_ids"]),
        Segments(stored["segment_ids"], stored["segment_offsets"]),
        stored["source_to_pivot"],
    )
    shape = (int(stored["count_shape"][0]), int(stored["count_shape"][1]))
    counts = Cooccurrence(stored["count_source_ids"], stored["count_pivot_ids"], stored["counts"], shape)
    marks = (str(stored["marks"][0]), str(stored["marks"][1]))
    texts = ReleasedTexts(_unpack(stored["pivot_texts"]), _unpack(stored["source_texts"]), marks) if marks[0] else None
    return Vocabularies(tables, stored["origin"], counts, texts)


def has_vocabularies(url: str) -> bool:
    """Whether counting is finished for an artifact folder, and what it left is whole."""
    try:
        load_vocabularies(url)
    except ArtifactError:
        return False
    return True


def _pieces(tokenizer: Any, vocab_size: int) -> list[str]:
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return [piece or "" for piece in pieces] + [""] * (vocab_size - len(pieces))


def _decoded(tokenizer: Any, vocab_size: int) -> list[str]:
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))], clean_up_tokenization_spaces=False)
    return [*texts, *[""] * (vocab_size - len(texts))]


def _default_id(tokenizer: Any) -> int:
    """Where the released code sends ids that it never saw: the unknown token, else end of sequence, else nowhere."""
    token_id = tokenizer.unk_token_id if tokenizer.unk_token_id is not None else tokenizer.eos_token_id
    return -1 if token_id is None else int(token_id)


def _fixed_ids(pivot: Any, source: Any) -> dict[int, int]:
    pairs = ((source.bos_token_id, pivot.bos_token_id), (source.eos_token_id, pivot.eos_token_id))
    return {int(s): int(p) for s, p in pairs if s is not None and p is not None}


def _pack(texts: Sequence[str]) -> np.ndarray:
    return np.frombuffer(
        "\0".join(text.replace("\0", "\ufffe") for text in texts).encode("utf-8", "surrogatepass"), np.uint8
    )


def _unpack(data: np.ndarray) -> list[str]:
    texts = data.tobytes().decode("utf-8", "surrogatepass").split("\0") if len(data) else []
    return [text.replace("\ufffe", "\0") for text in texts]
