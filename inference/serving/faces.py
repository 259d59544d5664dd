"""What an engine of a service is: which model, which face, and the recipe that decides what it says.

Goes in: models and what the run file says of them. Comes out: a `Face` per model and face, cheap to send. Knows nothing about
engines or Ray.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fusechat.config import Capture, ExtractionSection, ModelSection
from fusechat.config.layout import RunLayout
from fusechat.config.serve import ServeSection
from fusechat.errors import ConfigError
from fusechat.models.model_limits import position_limit
from fusechat.models.resolved_model import ResolvedModel, resolve
from fusechat.text.recipes import positions_behind

from ..engine.engine_settings import engine_settings

FaceName = Literal["score", "generate"]


@dataclass(frozen=True)
class Face:
    """All that an engine of a service is told."""

    kind: FaceName
    model: ModelSection
    """Its folder is looked up where the engine stands."""
    template: str
    """Text of the chat template that it reads messages under."""
    k: int
    """Entries kept per row; 1 where answers are given."""
    capture: Capture
    max_tokens: int
    """Longest dialogue, tokens; with `generate` prompt and answer together."""
    max_dialogues: int
    """Most dialogues of a request."""
    at_once: int
    """Requests that it works on at once."""
    self_check_dialogues: int
    recipe: str
    """Fingerprint of all that decides what the engine says."""

    @property
    def name(self) -> str:
        """What clients call the model."""
        return self.model.name

    @property
    def id(self) -> str:
        """Names the deployment: another recipe is another one."""
        return f"{self.name}-{self.kind}-{self.recipe[:8]}"


def faces_of(
    layout: RunLayout, pivot: ModelSection, models: Sequence[ModelSection], serve: ServeSection, rows: ExtractionSection, *,
    dialogue_tokens: int,
) -> list[Face]:  # fmt: skip
    """The faces of models, in order.

    Args:
        pivot: whose template a model may read under.
        dialogue_tokens: longest dialogue of the run, in the pivot's tokens.
    Raises:
        ConfigError: a template that cannot be read, or `serve.max_tokens` is more than a model reads.
        ModelError: a model that is not there, or without a tokenizer.
    """
    from fusechat.text.model_templates import template_of  # transformers: seconds

    faces, known_pivot = [], resolve(pivot, layout.digests_path)
    for section in models:
        model = resolve(section, layout.digests_path)
        template = template_of(model, known_pivot)
        longest = _max_tokens(model, serve.max_tokens, rows.capture, 2 * dialogue_tokens)
        for kind in serve.faces_of(model.name):
            faces.append(
                Face(
                    kind=kind,
                    model=section,
                    template=template,
                    k=rows.k if kind == "score" else 1,
                    capture=rows.capture,
                    max_tokens=longest,
                    max_dialogues=serve.max_request_dialogues,
                    at_once=serve.requests_in_flight,
                    self_check_dialogues=rows.self_check_dialogues,
                    recipe=recipe_of(kind, model, template, rows),
                )
            )
    return faces


def recipe_of(kind: FaceName, model: ResolvedModel, template: str, section: ExtractionSection) -> str:
    """Fingerprint, 16 hexadecimal digits, of all that decides what an engine says to given token ids or messages."""
    scoring = {"k": section.k, "capture": section.capture} if kind == "score" else {}
    values = {
        "face": kind,
        "digests": model.digests,
        "template": hashlib.sha256(template.encode()).hexdigest(),
        "template_arguments": model.section.template_arguments,
        **engine_settings(model.section.engine),
        **scoring,
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _max_tokens(model: ResolvedModel, wanted: int | None, capture: str, most: int) -> int:
    """Longest dialogue that the engines of a model read: what is wanted, else `most`, or what the model reads."""
    limit = position_limit(model.folder)
    limit = limit - positions_behind(capture) if limit else limit
    if wanted and limit and wanted > limit:
        raise ConfigError(f"serve.max_tokens is {wanted}, {model.name} reads {limit}; lower it or leave it out")
    return wanted or min(most, limit or most)
