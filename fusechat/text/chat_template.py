"""Chat templates: a dialogue in; the text a model reads, and where each message's content stands in it, out.

A template may strip white space off a content; anything else it does to one is refused, because spans into the content
would then be wrong. Knows nothing about token ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import jinja2

from ..errors import DialogueError, ModelError
from .dialogues import Dialogue, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Range = tuple[int, int]
MAX_SKELETONS = 512
"""Sequences of roles whose rendering is kept per template; a longer list would cost memory and save no time."""


@dataclass(frozen=True)
class Rendered:
    """A dialogue under a template.

    `content_ranges`: for each message, where its content stands in `text`, [start, end) in characters; `covered`: which
    characters [start, end) of the message's own content stand there (less than all where the template strips).
    """

    text: str
    content_ranges: tuple[Range, ...]
    covered: tuple[Range, ...]

    @property
    def contents(self) -> tuple[str, ...]:
        """What stands in the text of each content."""
        return tuple(self.text[start:end] for start, end in self.content_ranges)

    @property
    def template_parts(self) -> tuple[str, ...]:
        """The template's own texts before, between and after the contents: one more than there are messages."""
        starts, ends = [start for start, _ in self.content_ranges], [end for _, end in self.content_ranges]
        return tuple(self.text[a:b] for a, b in zip([0, *ends], [*starts, len(self.text)], strict=True))


def load_tokenizer(
    model: str, revision: str | None = None, template: str | None = None
) -> tuple[PreTrainedTokenizerBase, str]:
    """Load a model's tokenizer and settle its chat template.

    Args:
        model: Hugging Face folder or hub id.
        template: text of a Jinja template; None for the model's own.
    Returns:
        the tokenizer and the text of the template.
    Raises:
        ModelError: no tokenizer there, one without a `tokenizers` backend (the only kind that keeps track of where its
            tokens come from), no template, or a template that cannot be used.
    """
    from transformers import AutoTokenizer  # seconds, and half a GiB: only where text becomes tokens

    try:
        # Mistral's own backend gives ids without offsets; its folders hold a tokenizer.json as well.
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, mistral_format=False)
    except Exception as error:  # the Rust side raises plain Exception on a broken tokenizer.json
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{model}: no tokenizer could be loaded ({reason}); expected tokenizer.json and tokenizer_config.json in a "
            "Hugging Face folder"
        ) from error
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ModelError(
            f"{model}: its tokenizer is {type(tokenizer).__name__}, expected one with a tokenizer.json; convert it "
            "with transformers' convert_slow_tokenizer and save it"
        )
    if template is None:
        template = _native_template(tokenizer, model)
    exchange = Dialogue("probe of the template", (Message("user", "Hello."), Message("assistant", "Good day.")))
    try:
        _ChatTemplate(tokenizer, template).render(exchange, prompt=False)  # `render` would keep the tokenizer in memory
    except DialogueError as error:
        raise ModelError(f"{model}: its chat template cannot show one question and its answer: {error}") from None
    return tokenizer, template


def render(
    tokenizer: PreTrainedTokenizerBase, template_text: str, dialogue: Dialogue, add_generation_prompt: bool = False
) -> Rendered:
    """Render a dialogue and find its contents.

    Args:
        add_generation_prompt: also write what the template puts before an answer.
    Raises:
        DialogueError: the template refuses the dialogue (a role it does not know, say).
        ModelError: the template leaves a content out, repeats, moves or rewrites it.
    """
    return _chat_template(tokenizer, template_text).render(dialogue, add_generation_prompt)


@lru_cache(maxsize=2)  # models are tokenized in turn; each entry keeps a tokenizer, up to 0.2 GiB, alive
def _chat_template(tokenizer: PreTrainedTokenizerBase, text: str) -> _ChatTemplate:
    return _ChatTemplate(tokenizer, text)


def _native_template(tokenizer: PreTrainedTokenizerBase, model: str) -> str:
    if not tokenizer.chat_template:
        raise ModelError(
            f"{model}: the tokenizer has no chat template; set `template` of this model to `pivot` or to the path of a "
            "Jinja file"
        )
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:  # several named templates, none of them the default
        raise ModelError(f"{model}: {error}; set `template` of this model to the path of a Jinja file") from None


class _ChatTemplate:
    """A template bound to a tokenizer (whose special tokens it may name), and its text for each sequence of roles."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
        self._tokenizer = tokenizer
        self._text = text
        self._name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        self._stem = "zqcontent"
        while self._stem in text:
            self._stem += "q"
        self._skeletons: dict[tuple[tuple[str, ...], bool], tuple[str, ...]] = {}

    def render(self, dialogue: Dialogue, prompt: bool) -> Rendered:
        """As the function `render`; `prompt`: add the generation prompt."""
        contents = [message.content for message in dialogue.messages]
        text = self._apply(dialogue, contents, prompt)
        shown = [
            content if content == content.strip() else self._shown(dialogue, number, prompt)
            for number, content in enumerate(contents)
        ]
        ranges = _interleave(self._skeleton(dialogue, prompt), shown, text)
        if ranges is None:  # the template may write the date, and midnight may have passed
            self._skeletons.clear()
            ranges = _interleave(self._skeleton(dialogue, prompt), shown, text)
        if ranges is None:  # the template's own text depends on a content
            ranges = _find_once(contents, text)
        if ranges is None:
            raise self._rewritten(dialogue, text)
        covered = [_covered(content, text[slice(*found)]) for content, found in zip(contents, ranges, strict=True)]
        return Rendered(text, tuple(ranges), tuple(covered))

    def _apply(self, dialogue: Dialogue, contents: list[str], prompt: bool) -> str:
        """The template's text for the dialogue's roles and these contents."""
        roles = [message.role for message in dialogue.messages]
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        try:
            text = self._tokenizer.apply_chat_template(
                messages, chat_template=self._text, tokenize=False, add_generation_prompt=prompt
            )
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(
                f"{self._name}: line {error.lineno} of the chat template is not Jinja ({error.message}); correct it"
            ) from None
        except jinja2.TemplateError as error:
            raise DialogueError(
                f"dialogue {dialogue.id!r}: the chat template of {self._name} refuses the roles {', '.join(roles)} "
                f"({error}); set `template` of this model to `pivot` or to a Jinja file that takes them"
            ) from None
        assert isinstance(text, str)  # tokenize=False gives text
        return text

    def _marks(self, dialogue: Dialogue) -> list[str]:
        """Placeholders, one for each message; none stands within another or in the template."""
        return [f"{self._stem}{number}z" for number in range(len(dialogue.messages))]

    def _skeleton(self, dialogue: Dialogue, prompt: bool) -> tuple[str, ...]:
        """The template's own texts around contents of these roles, found by rendering placeholders."""
        key = (tuple(message.role for message in dialogue.messages), prompt)
        if key not in self._skeletons:
            if len(self._skeletons) >= MAX_SKELETONS:
                self._skeletons.clear()
            marks = self._marks(dialogue)
            text = self._apply(dialogue, marks, prompt)
            self._check_marks(dialogue, marks, text)
            starts = [text.index(mark) for mark in marks]
            ends = [start + len(mark) for start, mark in zip(starts, marks, strict=True)]
            self._skeletons[key] = tuple(text[a:b] for a, b in zip([0, *ends], [*starts, len(text)], strict=True))
        return self._skeletons[key]

    def _check_marks(self, dialogue: Dialogue, marks: list[str], text: str) -> None:
        for number, (message, mark) in enumerate(zip(dialogue.messages, marks, strict=True), 1):
            if text.count(mark) != 1:
                raise ModelError(
                    f"{self._name}: the chat template shows message {number} of {len(marks)} ({message.role}) "
                    f"{text.count(mark)} times, expected once; set `template` to `pivot` or to a Jinja file which does"
                )
        if sorted(marks, key=text.index) != marks:
            roles = ", ".join(message.role for message in dialogue.messages)
            raise ModelError(
                f"{self._name}: the chat template puts the messages {roles} into another order, expected theirs; "
                "set `template` to `pivot` or to a Jinja file that keeps it"
            )

    def _shown(self, dialogue: Dialogue, number: int, prompt: bool) -> str:
        """What the template makes of one content, found by rendering it among placeholders; itself if that fails."""
        content, marks = dialogue.messages[number].content, self._marks(dialogue)
        text = self._apply(dialogue, [*marks[:number], content, *marks[number + 1 :]], prompt)
        parts = self._skeleton(dialogue, prompt)
        before = "".join(part + mark for part, mark in zip(parts, [*marks[:number], ""], strict=False))
        after = "".join(mark + part for part, mark in zip(parts[number + 1 :], ["", *marks[number + 1 :]], strict=True))
        if text.startswith(before) and text.endswith(after) and len(before) + len(after) <= len(text):
            shown = text[len(before) : len(text) - len(after)]
            if shown in content and shown.strip() == content.strip():
                return shown
        return content

    def _rewritten(self, dialogue: Dialogue, text: str) -> ModelError:
        lost = [(i, m) for i, m in enumerate(dialogue.messages, 1) if m.content.strip() not in text]
        which = f"message {lost[0][0]} ({lost[0][1].role}: {lost[0][1].content[:60]!r})" if lost else "a message"
        return ModelError(
            f"dialogue {dialogue.id!r}: the chat template of {self._name} rewrites {which}, expected each content as "
            "it is or stripped of white space; set `template` to `pivot` or to a Jinja file that does so"
        )


def _interleave(parts: tuple[str, ...], shown: list[str], text: str) -> list[Range] | None:
    """Where the contents stand if `text` is parts and contents in turn; None if it is not."""
    position, ranges = 0, []
    for part, content in zip(parts, shown, strict=False):
        start = position + len(part)
        position = start + len(content)
        ranges.append((start, position))
    pieces = [piece for pair in zip(parts, [*shown, ""], strict=True) for piece in pair]
    return ranges if "".join(pieces) == text else None


def _find_once(contents: list[str], text: str) -> list[Range] | None:
    """Where the contents stand if each, whole or stripped, is found exactly once and in order; None if not."""
    ranges: list[Range] = []
    for content in contents:
        whole = next((form for form in (content, content.strip()) if form and form in text), "")
        start = text.find(whole)
        if not whole or start != text.rfind(whole) or (ranges and start < ranges[-1][1]):
            return None
        ranges.append((start, start + len(whole)))
    return ranges


def _covered(content: str, shown: str) -> Range:
    """Which characters of the content are shown; what is not is white space at its ends."""
    if not shown.strip():
        start = content.find(shown)
    else:
        start = len(content) - len(content.lstrip()) - (len(shown) - len(shown.lstrip()))
    return start, start + len(shown)
