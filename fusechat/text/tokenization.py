"""Tokenization: a dialogue under a model's chat template in; token ids, scored tokens, and spans into its fields out.

The ids are those of `apply_chat_template`, except where a field holds the text of a control token: that is text here.
Scored is what an assistant writes: the bytes of its reasoning, content and tool calls, the marks that the template puts
between them, and the end of its turn. Spans point into `Dialogue.field_bytes` and so do not depend on the template; those
of tool calls, which each template writes in its own form, point into the calls as they stand here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from ..errors import DialogueError, ModelError
from .chat_template import render, renderer_of
from .control_tokens import ControlTokens, Encoded
from .dialogues import Dialogue, Message
from .foreign_tokenizer import panics_named
from .layout import Measured, TokenizedDialogue, lay_out
from .rendered import ChatTemplate, Rendered
from .template_heads import render_answerable
from .token_spans import TextBytes, byte_ranges, overlap_any
from .token_surface import token_surfaces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_DIALOGUES = 256
"""Dialogues encoded in one call: enough to keep all cores busy, few enough to hold at once."""


def tokenize_dialogue(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | str, dialogue: Dialogue
) -> TokenizedDialogue:
    """Tokenize one dialogue.

    Raises:
        DialogueError: the template refuses the dialogue, or the tokenizer drops a whole content.
        ModelError: the template rewrites contents, or the tokenizer has no `tokenizers` backend.
    """
    return next(tokenize_dialogues(tokenizer, template, [dialogue]))


def tokenize_dialogues(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | str, dialogues: Iterable[Dialogue]
) -> Iterator[TokenizedDialogue]:
    """Tokenize many dialogues, in order, in batches that `tokenizers` spreads over the cores.

    Raises:
        DialogueError, ModelError: as `tokenize_dialogue`.
    """
    for tokenized in tokenize_each(tokenizer, template, dialogues):
        if isinstance(tokenized, Exception):
            raise tokenized
        yield tokenized


def tokenize_each(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | str, dialogues: Iterable[Dialogue]
) -> Iterator[TokenizedDialogue | DialogueError | ModelError]:
    """As `tokenize_dialogues`, with the error in the place of a dialogue that cannot be shown or tokenized."""
    encoder = _encoder(tokenizer, len(tokenizer))
    remaining = iter(dialogues)
    while batch := list(islice(remaining, BATCH_DIALOGUES)):
        rendered = [_rendered(tokenizer, template, dialogue) for dialogue in batch]
        measured = encoder.measure([one for one in rendered if isinstance(one, Rendered)])
        for dialogue, one in zip(batch, rendered, strict=True):
            if not isinstance(one, Rendered):
                yield one
                continue
            try:
                tokens = next(measured)
                yield tokens if isinstance(tokens, ModelError) else lay_out(dialogue, one, tokens)
            except DialogueError as error:
                yield error


def _rendered(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | str, dialogue: Dialogue
) -> Rendered | DialogueError | ModelError:
    try:
        return render(tokenizer, template, dialogue)
    except (DialogueError, ModelError) as error:
        return error


def tokenize_prompt(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | str, asked: Dialogue | Sequence[Message]
) -> list[int]:
    """Token ids of messages and of what stands before the answer to them, for generation.

    Args:
        asked: the messages, or a dialogue of them that has tools or template arguments as well.

    Raises:
        DialogueError: the template refuses the messages.
        ModelError: as for `tokenize_dialogue`.
    """
    renderer = renderer_of(tokenizer, ChatTemplate.of(template))
    dialogue = asked if isinstance(asked, Dialogue) else Dialogue("prompt", tuple(asked))
    measured = next(_encoder(tokenizer, len(tokenizer)).measure([render_answerable(renderer, dialogue)]))
    if isinstance(measured, ModelError):
        raise measured
    token_ids: list[int] = measured.token_ids.tolist()
    return token_ids


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
        self._name = tokenizer.name_or_path
        self._backend = _untrimmed(backend)
        self._surfaces = token_surfaces(backend)
        self._controls = ControlTokens(backend)

    def measure(self, rendered: Sequence[Rendered]) -> Iterator[Measured | ModelError]:
        """Encode texts so that no control token comes out of a field, and find where the tokens stand.

        A text that cannot be encoded so has the error in its place.
        """
        if self._backend.truncation is not None:
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()
        with panics_named(self._name):
            encodings = self._backend.encode_batch([one.text for one in rendered], add_special_tokens=False)
        for one, encoding in zip(rendered, encodings, strict=True):
            measured = self._measured(Encoded(one.text, encoding, one.said))
            if not self._controls.may_be_forged(measured.token_ids, measured.in_content):
                yield measured
                continue
            try:
                with panics_named(self._name):
                    guarded = self._controls.encode_guarded(one.template_parts, one.contents)
                yield self._measured(guarded)
            except ModelError as error:
                yield error

    def _measured(self, encoded: Encoded) -> Measured:
        text, encoding = TextBytes(encoded.text), encoded.encoding
        token_ids = np.asarray(encoding.ids, dtype=np.int32)
        starts, ends = byte_ranges(text, encoding.ids, encoding.offsets, self._surfaces)
        regions = text.byte_of(np.asarray(encoded.content_ranges, dtype=np.int64).reshape(-1, 2))
        in_content = overlap_any(starts, ends, regions)
        is_control = self._controls.find(token_ids, in_content)
        return Measured(text.data, token_ids, starts, ends, is_control, in_content, regions)


def _untrimmed(backend: Tokenizer) -> Tokenizer:
    """The backend, or a copy without a post-processor that cuts white space off the offsets (GPT-2's and RoBERTa's do)."""
    processor = backend.post_processor
    if processor is None or b'"trim_offsets":true' not in processor.__getstate__():
        return backend
    copy = Tokenizer.from_str(backend.to_str())
    copy.post_processor = None
    return copy
