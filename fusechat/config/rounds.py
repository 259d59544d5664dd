"""The run file's section on rounds: how often the student answers, and what it learns from the sources' rows on its answers."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from .paths import PathText, expand_within
from .secrets import refuse_hub_keys, refuse_secret_keys
from .section import Section, check_samples


class RoundsSection(Section):
    """After fusion the student answers prompts, the sources score its answers, and it is trained on their rows; `count` times."""

    count: int = Field(0, ge=0)
    """Rounds; 0: none. Each begins with the student of the one before, the first with the fused model."""
    samples: int = Field(2, ge=1)
    """The student's answers to each prompt."""
    temperature: float = Field(1.0, ge=0)
    """Of the sampling; 0: the most probable token each time, and so one sample."""
    max_new_tokens: int = Field(512, ge=1)
    """Longest answer, tokens; one that has not ended by then is left out."""
    prompts: list[PathText] = []
    """Files of prompts, as `dialogues.prompts`; default: those of `dialogues.prompts`, or if there are none the training
    dialogues without their last answers."""
    given_share: float = Field(0.33, ge=0, lt=1)
    """Share of the given dialogues among those of a round, trained on as ever: they keep the student honest."""
    least_probability: float = Field(0.02, ge=0, lt=1)
    """An answer is read up to the first token that its teacher finds less probable: what follows stands behind words that the
    teacher would not say. 0: all of it."""
    divergence: Literal["ce", "kl"] = "ce"
    """Between the chosen row and the student's distribution, as `training.divergence`, in all rounds."""
    trl: dict[str, Any] = {}
    """Fields of TRL's SFTConfig for the rounds alone, on top of `training.trl`; fewer epochs, say."""
    number: int = Field(0, ge=0)
    """Not for people: which round of another run this run is; FuseChat writes it into `rounds/NUMBER/run.json`."""

    _no_secret = field_validator("trl")(refuse_secret_keys)
    _no_upload = field_validator("trl")(refuse_hub_keys)
    _paths = field_validator("trl")(expand_within)

    @model_validator(mode="after")
    def _samples_differ(self) -> "RoundsSection":
        check_samples(self.temperature, self.samples)
        return self

    @model_validator(mode="after")
    def _no_round_has_rounds(self) -> "RoundsSection":
        if self.number and self.count:
            raise ValueError(
                f"found count {self.count} in a run that is a round itself (number {self.number}); drop one"
            )
        return self
