"""What every section of a run file is made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""A name that is also a folder name."""


def check_samples(temperature: float, samples: int) -> None:
    """Raises ValueError where several samples would be one and the same answer."""
    if temperature == 0 and samples > 1:
        raise ValueError(
            f"temperature 0 gives the same answer every time, found samples {samples}; set samples: 1, or a temperature"
        )


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused, field docstrings kept for docs/configuration.md."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
