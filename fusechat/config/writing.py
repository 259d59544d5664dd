"""The run file's section on prompts: who answers them, and which answers become dialogues."""

import difflib
from collections.abc import Sequence
from typing import Any

from pydantic import Field, model_validator

from .evaluation import JudgeSection
from .section import Name, Section, check_samples


class WritingSection(Section):
    """Who answers the prompts of `dialogues.prompts`, and which answers become dialogues."""

    writers: list[Name] | None = None
    """Models of the run that answer; default: all sources. The pivot may write too."""
    samples: int = Field(4, ge=1)
    """Answers of each writer to each prompt."""
    temperature: float = Field(0.8, ge=0)
    """Of the sampling; 0: the most probable token each time, and so one sample."""
    max_new_tokens: int = Field(512, ge=1)
    """Longest answer to one turn, tokens; one that has not ended by then is refused."""
    keep: Name = "all"
    """Rule that says which answers are kept, a name of `inference.writing.rules`: `reference`, `agreement`, `likelihood`,
    `judge` or `all`."""
    parameters: dict[str, Any] = {}
    """The rule's own parameters, such as `min_share` of `agreement`."""
    per_prompt: int | None = Field(1, ge=1)
    """Most answers that are kept of a prompt, the best by the rule's score first, then by lot; null: all that the rule keeps."""
    scorers: list[Name] | None = None
    """Models of the run that score answers of others, for a rule that asks for it (`likelihood`); default: all sources."""
    judge: JudgeSection | None = None
    """Who judges answers, for a rule that asks for it (`judge`); default: the judge of `evaluation.judge`."""
    seed: int | None = None
    """Of the sampling; default: `run.seed`."""
    chunk_prompts: int = Field(64, ge=1)
    """Prompts that a writer answers at once: the unit of work and of resumption."""

    @model_validator(mode="after")
    def _samples_differ(self) -> "WritingSection":
        check_samples(self.temperature, self.samples)
        return self

    def check_models(self, known: Sequence[str]) -> None:
        """Raises ValueError for a writer or scorer that is no model of the run; the nearest is named."""
        for field, names in (("writers", self.writers), ("scorers", self.scorers)):
            if names is not None and (not names or len(set(names)) < len(names)):
                raise ValueError(f"writing.{field}: found {names}, expected at least one model, each once")
            for name in names or []:
                if name not in known:
                    near = difflib.get_close_matches(name, known, n=1)
                    hint = f"did you mean {near[0]!r}?" if near else f"the run has {', '.join(known)}"
                    raise ValueError(f"writing.{field}: found {name!r}, which is no model of this run; {hint}")
