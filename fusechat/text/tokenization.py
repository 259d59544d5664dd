"""Tokenization: a dialogue under a model's chat template in; token ids, target mask and content spans out.

The ids are those of `apply_chat_template`, except where a content holds the text of a control token: that is text here.
A target token is one that holds bytes of an assistant's content, or ends its turn. Spans point into
`Dialogue.content_bytes` and so do not depend on the template.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from ..errors import DialogueError, ModelError
from .chat_template import Rendered, render
from .control_tokens import ControlTokens, Encoded
from .dialogues import Dialogue, Message
from .token_spans import TextBytes, byte_ranges, overlap_any, place_on_contents
from .token_surface import token_surfaces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_DIALOGUES = 256
"""Dialogues encoded in one call: enough to keep all cores busy, few enough to hold at once."""


@dataclass(frozen=True)
class TokenizedDialogue:
    """`token_ids` int32 [tokens]; `is_target` bool [tokens]; `content_span` int32 [tokens, 2], bytes.

    Spans are in order, never overlap, and cover every byte of every content but those that the template (or a control
    token beside it) strips; -1, -1 for tokens of the template. A token that stands on both sides of a content's edge has
    the content's part. A token that spells no byte of its own (a word-start mark put before a content, or one of several
    tokens for one normalised character) has an empty span.
    """

    token_ids: np.ndarray
    is_target: np.ndarray
    content_span: np.ndarray

    def __len__(self) -> int:
        return len(self.token_ids)


def tokenize_dialogue(tokenizer: PreTrainedTokenizerBase, template_text: str, dialogue: Dialogue) -> TokenizedDialogue:
    """Tokenize one dialogue.

    Raises:
        DialogueError: the template refuses the dialogue, or the tokenizer drops a whole content.
        ModelError: the template rewrites contents, or the tokenizer has no `tokenizers` backend.
    """
    return next(tokenize_dialogues(tokenizer, template_text, [dialogue]))


def tokenize_dialogues(
    tokenizer: PreTrainedTokenizerBase, template_text: str, dialogues: Iterable[Dialogue]
) -> Iterator[TokenizedDialogue]:
    """Tokenize many dialogues, in order, in batches that `tokenizers` spreads over the cores.

    Raises:
        DialogueError, ModelError: as `tokenize_dialogue`.
    """
    encoder = _encoder(tokenizer, len(tokenizer))
    remaining = iter(dialogues)
    while batch := list(islice(remaining, BATCH_DIALOGUES)):
        rendered = [render(tokenizer, template_text, dialogue) for dialogue in batch]
        for dialogue, one, measured in zip(batch, rendered, encoder.measure(rendered), strict=True):
            yield _lay_out(dialogue, one, measured)


def tokenize_prompt(tokenizer: PreTrainedTokenizerBase, template_text: str, messages: Sequence[Message]) -> list[int]:
    """Token ids of messages and of what the template puts before the answer to them, for generation.

    Raises:
        DialogueError: the template refuses the messages.
        ModelError: as for `tokenize_dialogue`.
    """
    rendered = render(tokenizer, template_text, Dialogue("prompt", tuple(messages)), add_generation_prompt=True)
    return next(_encoder(tokenizer, len(tokenizer)).measure([rendered])).token_ids.tolist()


def cut_dialogue(
    tokenizer: PreTrainedTokenizerBase, template_text: str, dialogue: Dialogue, max_tokens: int
) -> tuple[Dialogue | None, str]:
    """Keep the system message and as many whole exchanges from the start as fit into `max_tokens`.

    Returns:
        the dialogue, itself if all of it fits, None if not even the first exchange does; and what was done, in words
        (empty if nothing).
    """
    num_tokens = len(tokenize_dialogue(tokenizer, template_text, dialogue))
    if num_tokens <= max_tokens:
        return dialogue, ""
    head = 1 if dialogue.messages[0].role == "system" else 0
    fits, fits_not = 0, (len(dialogue.messages) - head + 1) // 2
    first_tokens = num_tokens
    while fits_not - fits > 1:
        middle = (fits + fits_not) // 2
        length = len(tokenize_dialogue(tokenizer, template_text, _first_exchanges(dialogue, head, middle)))
        if length <= max_tokens:
            fits = middle
        else:
            fits_not, first_tokens = middle, length
    if not fits:
        return None, (
            f"dialogue {dialogue.id!r}: set aside, because its first exchange has {first_tokens:,} tokens "
            f"and max_tokens is {max_tokens:,}"
        )
    kept = _first_exchanges(dialogue, head, fits)
    return kept, (
        f"dialogue {dialogue.id!r}: cut from {len(dialogue.messages)} to {len(kept.messages)} messages, because it has "
        f"{num_tokens:,} tokens and max_tokens is {max_tokens:,}"
    )


def _first_exchanges(dialogue: Dialogue, head: int, exchanges: int) -> Dialogue:
    return dataclasses.replace(dialogue, messages=dialogue.messages[: head + 2 * exchanges])


@lru_cache(maxsize=2)  # as the templates' in chat_template.py
def _encoder(tokenizer: PreTrainedTokenizerBase, size: int) -> _DialogueEncoder:
    """`size`: number of the tokenizer's ids; part of the key, because tokens can be added to it later."""
    return _DialogueEncoder(tokenizer)


class _DialogueEncoder:
    """A tokenizer with what is derived from it once: surfaces, control tokens, a backend whose offsets are untrimmed."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ModelError(
                f"{tokenizer.name_or_path}: found a {type(tokenizer).__name__}, expected a tokenizer with a tokenizer.json, "
                "the only kind that says where its tokens come from; convert it and save it"
            )
        self._backend = _untrimmed(backend)
        self._surfaces = token_surfaces(backend)
        self._controls = ControlTokens(backend)

    def measure(self, rendered: Sequence[Rendered]) -> Iterator[_Measured]:
        """Encode texts so that no control token comes out of a content, and find where the tokens stand."""
        if self._backend.truncation is not None:
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()
        encodings = self._backend.encode_batch([one.text for one in rendered], add_special_tokens=False)
        for one, encoding in zip(rendered, encodings, strict=True):
            measured = self._measured(Encoded(one.text, encoding, one.content_ranges))
            if self._controls.may_be_forged(measured.token_ids, measured.in_content):
                measured = self._measured(self._controls.encode_guarded(one.template_parts, one.contents))
            yield measured

    def _measured(self, encoded: Encoded) -> _Measured:
        text, encoding = TextBytes(encoded.text), encoded.encoding
        token_ids = np.asarray(encoding.ids, dtype=np.int32)
        starts, ends = byte_ranges(text, encoding.ids, encoding.offsets, self._surfaces)
        regions = text.byte_of(np.asarray(encoded.content_ranges, dtype=np.int64).reshape(-1, 2))
        in_content = overlap_any(starts, ends, regions)
        is_control = self._controls.find(token_ids, in_content)
        return _Measured(text.data, token_ids, starts, ends, is_control, in_content, regions)


@dataclass(frozen=True)
class _Measured:
    """An encoded text: [tokens] ids, byte ranges and masks; `regions` [messages, 2], the bytes of the contents in `data`."""

    data: bytes
    token_ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    is_control: np.ndarray
    in_content: np.ndarray
    regions: np.ndarray


def _untrimmed(backend: Tokenizer) -> Tokenizer:
    """The backend, or a copy without a post-processor that cuts white space off the offsets (GPT-2's and RoBERTa's do)."""
    processor = backend.post_processor
    if processor is None or b'"trim_offsets":true' not in processor.__getstate__():
        return backend
    copy = Tokenizer.from_str(backend.to_str())
    copy.post_processor = None
    return copy


def _lay_out(dialogue: Dialogue, rendered: Rendered, measured: _Measured) -> TokenizedDialogue:
    bases = [
        offset + len(message.content[: covered[0]].encode())
        for offset, message, covered in zip(dialogue.content_offsets, dialogue.messages, rendered.covered, strict=True)
    ]
    placed = place_on_contents(measured.starts, measured.ends, measured.is_control, measured.regions, bases)
    is_target = np.zeros(len(measured.token_ids), dtype=bool)
    for number, (message, (first, after), content) in enumerate(
        zip(dialogue.messages, placed.tokens, rendered.contents, strict=True), 1
    ):
        if first == after and content.strip():
            raise DialogueError(
                f"dialogue {dialogue.id!r}: the tokenizer drops all of message {number} ({content[:20]!a}), expected at "
                "least one token for it; remove the dialogue"
            )
        if message.role == "assistant":
            is_target[first:after] = True
            is_target[_end_of_turn(measured, placed.spans, after)] = True
    is_target[:1] = False  # nothing stands before the first token that could predict it
    return TokenizedDialogue(measured.token_ids, is_target, placed.spans.astype(np.int32))


def _end_of_turn(measured: _Measured, spans: np.ndarray, after: int) -> slice:
    """The tokens that end a turn: those from `after` to the next control token if only white space lies between, else one.

    Every one of them belongs to the template; where no such token follows, none.
    """
    controls = np.flatnonzero(measured.is_control[after:])
    if len(controls):
        control = after + int(controls[0])
        between = measured.data[int(measured.ends[after - 1]) if after else 0 : int(measured.starts[control])]
        if not between.strip() and (spans[after : control + 1, 0] < 0).all():
            return slice(after, control + 1)
    is_template = after < len(spans) and spans[after, 0] < 0
    return slice(after, after + 1 if is_template else after)
