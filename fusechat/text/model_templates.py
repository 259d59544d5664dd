"""Which template a model of a run reads with: the model and the pivot in, texts out."""

from pathlib import Path

from ..errors import ConfigError
from ..models.digests import text_digest
from ..models.resolved_model import ResolvedModel
from .chat_template import load_tokenizer
from .dialogue_rows import RESERVED_ARGUMENTS
from .prompt_file import PROMPT_FILE, read_prompt_file
from .rendered import ChatTemplate

TEMPLATE_NAMES = ("native", "pivot")


def template_of(model: ResolvedModel, pivot: ResolvedModel) -> str:
    """Text of the template that the run gives a model.

    Raises:
        ConfigError, ModelError: as `tokenize`.
    """
    return given_template(model, pivot) or load_tokenizer(str(model.folder))[1]


def used_template(model: ResolvedModel, text: str, date: str) -> ChatTemplate:
    """The template as a model uses it.

    Args:
        text: of the template.
        date: that it writes as today's, YYYY-MM-DD.
    Raises:
        ConfigError: an argument that FuseChat itself gives.
    """
    if reserved := sorted(RESERVED_ARGUMENTS & model.section.template_arguments.keys()):
        raise ConfigError(
            f"{model.name}: template_arguments has {reserved[0]!r}, which FuseChat itself tells every template; leave it out"
        )
    return ChatTemplate(text, model.section.template_arguments, date)


def asked_template(model: ResolvedModel, pivot: ResolvedModel, date: str) -> ChatTemplate:
    """How a model is asked for answers: as its folder says where FuseChat trained it, else as its template asks.

    Args:
        model: of the run, or another that writes for it.
        date: that the template writes as today's, YYYY-MM-DD.
    Raises:
        ConfigError, ModelError: a template that cannot be read.
    """
    text = load_tokenizer(str(model.folder), template=given_template(model, pivot))[1]
    if (model.folder / PROMPT_FILE).is_file():
        return read_prompt_file(model.folder, text)
    return used_template(model, text, date)


def given_template(model: ResolvedModel, pivot: ResolvedModel) -> str | None:
    """Text of the template that the run file names for a model; None: the model's own."""
    name = model.section.template
    if name == "pivot" and model.name != pivot.name:
        return template_of(pivot, pivot)
    if name in TEMPLATE_NAMES:
        return None
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{model.name}: template {name!r} is neither 'native', 'pivot' nor a readable Jinja file ({error})"
        ) from None


def read_with(model: ResolvedModel, text: str | None) -> dict[str, str]:
    """What a recipe says of the files that a model reads with: what they hold, not where they lie.

    Args:
        text: from `given_template`.
    """
    template = text_digest(text) if text else model.section.template
    return {"template": template, "tokenizer": model.digests["tokenizer"], "config": model.digests["config"]}
