"""Control tokens: which ids they are, and an encoder that finds them only where the template wrote them.

A tokenizer finds the text of a control token anywhere, also in what a user typed. The guarded encoder is the same
tokenizer with every control token under another name that does not occur in the text; writing those names into the
template's parts, and nowhere else, leaves the rest of the text as plain text in every respect (white-space rules,
normalisation, merges). Knows nothing about dialogues.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from ..errors import ModelError
from .token_surface import unknown_piece

MARKERS = [chr(code) for code in range(0x1D000, 0x1D0F6)]
"""Byzantine musical notes: symbols that no normaliser rewrites, no case folding knows and no dialogue needs."""


MAX_GUARDED = 4
"""Renamed backends kept per tokenizer; more than one is needed only if a template writes control tokens by conditions."""


@dataclass(frozen=True)
class Encoded:
    """A text as it was encoded: the text itself (control tokens perhaps renamed), and where the contents stand in it."""

    text: str
    encoding: Encoding
    content_ranges: tuple[tuple[int, int], ...]


class ControlTokens:
    """The control tokens of one tokenizer.

    Special tokens are control tokens always. A token that was added without being special (`<think>`, in some models
    `<|im_end|>` too) is one in a text whose template part holds it, unless it is white space. The unknown token is none,
    but its text is not parsed in a content either.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._guarded: dict[tuple[frozenset[int], str], Tokenizer] = {}
        added = backend.get_added_tokens_decoder()
        size = max([*backend.get_vocab().values(), *added], default=-1) + 1
        self._special = np.zeros(size, bool)
        self._plain = np.zeros(size, bool)
        for token_id, token in added.items():
            self._special[token_id] = token.special
            self._plain[token_id] = not token.special and not token.content.isspace()
        unknown = unknown_piece(backend)
        unknown_id = None if unknown is None else backend.token_to_id(unknown)
        self._unknown_id = -1 if unknown_id is None else unknown_id
        self._ids = {token.content: token_id for token_id, token in added.items()}
        names = [token.content for token in added.values() if token.special or not token.content.isspace()]
        # Longest first: of names that begin alike, tokenizers takes the longest.
        self._pattern = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)")

    def find(self, token_ids: np.ndarray, in_content: np.ndarray) -> np.ndarray:
        """bool [tokens]: which tokens of an encoded text are control tokens.

        Args:
            token_ids: [tokens].
            in_content: bool [tokens], the token holds bytes of a content.
        """
        used = np.unique(token_ids[self._plain[token_ids] & ~in_content])
        is_control: np.ndarray = (self._special[token_ids] | np.isin(token_ids, used)) & (token_ids != self._unknown_id)
        return is_control

    def may_be_forged(self, token_ids: np.ndarray, in_content: np.ndarray) -> bool:
        """True if a content may hold the text of a control token, parsed as one. Arguments as for `find`."""
        suspects = in_content & (self._special | self._plain)[token_ids]
        if not suspects.any():
            return False
        return bool((suspects & (self.find(token_ids, in_content) | (token_ids == self._unknown_id))).any())

    def encode_guarded(self, parts: Sequence[str], contents: Sequence[str]) -> Encoded:
        """Encode template parts and contents in turn, finding control tokens in the parts only.

        Args:
            parts: the template's texts, one more than contents.
        Raises:
            ModelError: the tokenizer cannot be rebuilt under other names.
        """
        text = "".join([*parts, *contents])
        marker = next((marker for marker in MARKERS if marker not in text), None)
        if marker is None:
            raise ModelError("a text holds every symbol from U+1D000 to U+1D0F5, expected one to be free; remove some")
        written = [self._ids[name] for part in parts for name in self._pattern.findall(part)]
        renamed = frozenset(np.flatnonzero(self._special).tolist()) | frozenset(written)
        if len(self._guarded) > MAX_GUARDED:
            self._guarded.clear()
        if (renamed, marker) not in self._guarded:
            self._guarded[renamed, marker] = _renamed_backend(self._backend, renamed, marker)
        pieces, ranges, position = [], [], 0
        for part, content in zip(parts, [*contents, ""], strict=True):
            part = self._pattern.sub(lambda match: _new_name(self._ids[match[0]], marker), part)
            start = position + len(part)
            position = start + len(content)
            pieces += [part, content]
            ranges.append((start, position))
        encoding = self._guarded[renamed, marker].encode("".join(pieces), add_special_tokens=False)
        read = [token_id for token_id in encoding.ids if token_id in renamed and token_id != self._unknown_id]
        expected = [token_id for token_id in written if token_id != self._unknown_id]
        if read != expected:
            raise ModelError(f"control tokens {expected} of a template were read as {read}; use another template")
        return Encoded("".join(pieces), encoding, tuple(ranges[:-1]))


def _new_name(token_id: int, marker: str) -> str:
    return f"{marker}{token_id}{marker}"


def _renamed_backend(backend: Tokenizer, token_ids: frozenset[int], marker: str) -> Tokenizer:
    """A copy of the backend in which these ids have names made of the marker; all ids stay as they are."""
    state = json.loads(backend.to_str())
    state.update(post_processor=None, truncation=None, padding=None)
    renamed = {
        token["content"]: _new_name(token["id"], marker) for token in state["added_tokens"] if token["id"] in token_ids
    }
    for token in state["added_tokens"]:
        token["content"] = renamed.get(token["content"], token["content"])
    _rename_in_model(state["model"], renamed)
    copy = Tokenizer.from_str(json.dumps(state, ensure_ascii=False))
    for token in state["added_tokens"]:
        if copy.token_to_id(token["content"]) != token["id"]:
            raise ModelError(
                f"added token {token['id']} of the tokenizer moves to {copy.token_to_id(token['content'])} when it is built "
                "afresh, expected no change; remove the holes between the ids of its added tokens"
            )
    return copy


def _rename_in_model(model: dict[str, Any], renamed: dict[str, str]) -> None:
    """Rename pieces in a model's state, in place: a model that holds a control token as a piece could build it from text."""
    if isinstance(model["vocab"], list):  # Unigram: [piece, score], the position being the id
        model["vocab"] = [[renamed.get(piece, piece), score] for piece, score in model["vocab"]]
        return
    model["vocab"] = {renamed.get(piece, piece): token_id for piece, token_id in model["vocab"].items()}
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    if "merges" in model:
        prefix = len(model.get("continuing_subword_prefix") or "")
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [
            [left, right]
            for left, right in pairs
            if renamed.keys().isdisjoint((left, right, left + right[prefix:], left + right))
        ]
