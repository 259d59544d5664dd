"""The bytes that each id of a vocabulary spells: a tokenizer in, a list of byte strings out.

It is read off the tokenizer's own decoder, not off the looks of its pieces. Knows nothing about any text: where a token
stands in one is in `fusechat.text.token_spans`.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import Unigram, WordPiece

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_surfaces(tokenizer: Any) -> list[bytes | None]:
    """The bytes each id spells within running text.

    - Byte-level BPE (GPT-2's alphabet, tiktoken conversions): the bytes its piece stands for.
    - Sentencepiece (BPE, Unigram): its word-start mark is a space; `<0xE4>` is one byte if the model falls back
      to bytes.
    - WordPiece: a piece that starts a word spells a space and its text, a continuation its text alone, as its decoder
      does between two words. BPE with an end-of-word suffix: the text and a space.
    - Added tokens that are not special: their text.
    - None: control tokens, the unknown token, and ids without a piece.

    Args:
        tokenizer: a transformers tokenizer with a `tokenizers` backend, or such a backend.
    Returns:
        one entry for each id from 0 to the largest.
    """
    backend: Tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
    added = backend.get_added_tokens_decoder()
    vocabulary = backend.get_vocab(with_added_tokens=False)
    spell = _speller(backend)
    unknown = unknown_piece(backend)
    surfaces: list[bytes | None] = [None] * (max([*vocabulary.values(), *added], default=-1) + 1)
    for piece, token_id in vocabulary.items():
        surfaces[token_id] = None if piece == unknown else spell(piece)
    for token_id, token in added.items():
        surfaces[token_id] = None if token.special or token.content == unknown else token.content.encode()
    return surfaces


def unknown_piece(backend: Tokenizer) -> str | None:
    """The piece that stands for text outside the vocabulary."""
    if isinstance(backend.model, Unigram):
        unknown_id = _setting(backend.model, "unk_id")
        return None if unknown_id is None else backend.model.id_to_token(unknown_id)
    piece: str | None = _setting(backend.model, "unk_token")
    return piece


def _setting(model: Any, name: str) -> Any:
    """A model's setting, None if models of its kind have no such one; a Unigram shows its own in its state only."""
    return json.loads(model.__getstate__()).get(name) if isinstance(model, Unigram) else getattr(model, name, None)


def _speller(backend: Tokenizer) -> Callable[[str], bytes]:
    """The function piece -> bytes that undoes this tokenizer's alphabet."""
    nodes = [*_nodes(backend.decoder), *_nodes(backend.pre_tokenizer)]
    types = {node["type"] for node in nodes}
    if "ByteLevel" in types:
        return _spell_byte_level
    model = backend.model
    if "WordPiece" in types or isinstance(model, WordPiece):
        prefix = _setting(model, "continuing_subword_prefix") or "##"
        return lambda piece: (piece[len(prefix) :] if piece.startswith(prefix) else f" {piece}").encode()
    if suffix := _setting(model, "end_of_word_suffix"):
        return lambda piece: (f"{piece.removesuffix(suffix)} " if piece.endswith(suffix) else piece).encode()
    marks = _word_start_marks([*nodes, *_nodes(backend.normalizer)])
    has_byte_pieces = "ByteFallback" in types or bool(_setting(model, "byte_fallback"))

    def spell(piece: str) -> bytes:
        if has_byte_pieces and (match := _BYTE_PIECE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        for mark in marks:
            piece = piece.replace(mark, " ")
        return piece.encode()

    return spell


def _nodes(component: Any) -> Iterator[dict[str, Any]]:
    """The parts of a decoder, pre-tokenizer or normalizer, sequences unfolded."""
    if component is None:
        return
    pending = [json.loads(component.__getstate__())]
    while pending:
        node = pending.pop()
        yield node
        for key in ("decoders", "pretokenizers", "normalizers"):
            pending += node.get(key, [])


def _word_start_marks(nodes: list[dict[str, Any]]) -> set[str]:
    """Characters that stand for a space: Metaspace's, and those that a Replace writes for it or reads back as one."""
    marks = {node["replacement"] for node in nodes if node["type"] == "Metaspace"}
    for node in nodes:
        if node["type"] == "Replace" and "String" in node["pattern"]:
            pair = (node["pattern"]["String"], node["content"])
            marks |= {other for other in pair if " " in pair and len(other) == 1 and other != " "}
    return marks


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the others for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _spell_byte_level(piece: str) -> bytes:
    # A piece outside the alphabet is a token somebody put into the vocabulary as plain text.
    return bytes(_BYTE_OF[c] for c in piece) if all(c in _BYTE_OF for c in piece) else piece.encode()
