"""Chat templates: a dialogue in; the text a model reads, and where each field stands in it, out.

The door of rendering: `rendered` holds its records, `skeletons` finds the fields. Knows nothing about token ids.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from ..errors import DialogueError, ModelError
from .dialogues import Dialogue, Message
from .foreign_tokenizer import check_tokenizer_file, panics_named
from .rendered import ChatTemplate, Rendered
from .skeletons import Renderer
from .template_text import TemplateText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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

    check_tokenizer_file(model)
    try:
        # Mistral's own backend gives ids without offsets; its folders hold a tokenizer.json as well.
        with panics_named(model):
            tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, mistral_format=False)
    except ModelError:
        raise
    except Exception as error:  # the Rust side raises plain Exception on a broken tokenizer.json
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
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
        Renderer(TemplateText(tokenizer, ChatTemplate(template))).render(exchange)  # `render` would keep the tokenizer
    except DialogueError as error:
        raise ModelError(f"{model}: its chat template cannot show one question and its answer: {error}") from None
    return tokenizer, template


def render(
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate | str,
    dialogue: Dialogue,
    add_generation_prompt: bool = False,
) -> Rendered:
    """Render a dialogue and find its fields.

    Args:
        add_generation_prompt: also write what the template puts before an answer.
    Raises:
        DialogueError: the template refuses the dialogue (a role it does not know, say), or does not show a tool call.
        ModelError: the template leaves a field out, repeats, moves or rewrites it.
    """
    return renderer_of(tokenizer, ChatTemplate.of(template)).render(dialogue, add_generation_prompt)


@lru_cache(maxsize=2)  # models are tokenized in turn; each entry keeps a tokenizer, up to 0.2 GiB, alive
def renderer_of(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> Renderer:
    """The renderer of a template, which keeps what it found out about it."""
    return Renderer(TemplateText(tokenizer, template))


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
