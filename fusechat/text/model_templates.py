"""Which tokenizer and template a model of a run reads with: its section and the pivot's in, texts and folders out."""

from pathlib import Path

from ..config import ModelSection
from ..errors import ConfigError
from ..models import model_files
from .chat_template import load_tokenizer
from .dialogue_rows import RESERVED_ARGUMENTS
from .prompt_file import PROMPT_FILE, read_prompt_file
from .rendered import ChatTemplate

TEMPLATE_NAMES = ("native", "pivot")


def template_of(model: ModelSection, pivot: ModelSection) -> str:
    """Text of the template that the run gives a model.

    Raises:
        ConfigError, ModelError: as `tokenize`.
    """
    folder, revision, text = tokenizer_source(model, pivot)
    return text or load_tokenizer(folder, revision=revision)[1]


def used_template(model: ModelSection, text: str, date: str) -> ChatTemplate:
    """The template as a model uses it.

    Args:
        text: of the template.
        date: that it writes as today's, YYYY-MM-DD.
    Raises:
        ConfigError: an argument that FuseChat itself gives.
    """
    if reserved := sorted(RESERVED_ARGUMENTS & model.template_arguments.keys()):
        raise ConfigError(
            f"{model.name}: template_arguments has {reserved[0]!r}, which FuseChat itself tells every template; leave it out"
        )
    return ChatTemplate(text, model.template_arguments, date)


def asked_template(model: ModelSection, pivot: ModelSection, date: str) -> ChatTemplate:
    """How a model is asked for answers: as its folder says where FuseChat trained it, else as its template asks.

    Args:
        model: of the run, or another that writes for it.
        date: that the template writes as today's, YYYY-MM-DD.
    Raises:
        ConfigError, ModelError: a template that cannot be read.
    """
    folder, revision, text = tokenizer_source(model, pivot)
    text = load_tokenizer(folder, revision, text)[1]
    if (Path(folder) / PROMPT_FILE).is_file():
        return read_prompt_file(Path(folder), text)
    return used_template(model, text, date)


def tokenizer_source(model: ModelSection, pivot: ModelSection) -> tuple[str, str | None, str | None]:
    """Folder, revision and template text (None: the model's own) of a model."""
    folder = str(model_files.resolve_model(model))
    if model.template == "pivot" and model is not pivot and model.name != pivot.name:
        pivot_folder, revision, text = tokenizer_source(pivot, pivot)
        return folder, None, text or load_tokenizer(pivot_folder, revision=revision)[1]
    if model.template in TEMPLATE_NAMES:
        return folder, None, None
    try:
        return folder, None, Path(model.template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{model.name}: template {model.template!r} is neither 'native', 'pivot' nor a readable Jinja file ({error})"
        ) from None


def read_with(model: ModelSection, folder: str, text: str | None, digests: Path) -> dict[str, str]:
    """What a recipe says of the files that a model reads with: what they hold, not where they lie.

    Args:
        folder, text: from `tokenizer_source`.
        digests: file of the run's digests.
    """
    template = model_files.text_digest(text) if text else model.template
    files = model_files.digests(Path(folder), digests)
    return {"template": template, "tokenizer": files["tokenizer"], "config": files["config"]}
