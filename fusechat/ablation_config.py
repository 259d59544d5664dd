"""The ablation file: a base run, what is changed in it, and the tables that are wanted. YAML in, a frozen record out."""

import itertools
import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from .config import RunConfig, load_config
from .config_file import load_file
from .config_section import Section
from .errors import ConfigError

SOURCES = "sources"
"""Key of an override that keeps only the named sources."""


class TableSection(Section):
    """One table: a row for each variant of the base run, or for each model of one variant."""

    title: str
    """What stands above it."""
    set: dict[str, Any] = {}
    """Fields changed in every row of it."""
    variants: dict[str, dict[str, Any]] = {}
    """Row name -> fields of the run file and their values (`merge.method: ties`; `sources: [names to keep]`)."""
    grid: dict[str, list[Any]] = {}
    """Field -> values: a row for each combination, after those of `variants`."""
    models: list[str] = []
    """Instead of variants: models of the base run, `*` allowed, as in `evaluation.models` (`pivot`, `sft`, `target.*`, `fused`)."""
    model: str = "fused"
    """Whose figures a variant's row shows."""

    @model_validator(mode="after")
    def _one_kind_of_rows(self) -> "TableSection":
        if bool(self.models) == bool(self.variants or self.grid):
            raise ValueError("a table has either `models`, or `variants` and `grid`")
        return self

    def rows(self) -> dict[str, dict[str, Any]]:
        """Row name -> overrides of the run that it shows; one row of no override where the rows are models."""
        combinations = [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]
        named = {", ".join(f"{key.rsplit('.', 1)[-1]} {value}" for key, value in c.items()): c for c in combinations}
        rows = {**self.variants, **(named if self.grid else {})} or {"": {}}
        return {name: {**self.set, **overrides} for name, overrides in rows.items()}


class AblationConfig(Section):
    """A whole ablation."""

    base: str
    """Run file that the variants are made from."""
    output: Path = Path("runs/ablation")
    """Folder of all runs, of what they share, and of the tables."""
    seeds: list[int] = Field([0], min_length=1)
    """Every variant is run with each of them; intervals need at least three."""
    set: dict[str, Any] = {}
    """Fields changed in every variant."""
    tables: list[TableSection] = Field(min_length=1)
    """What is compared."""

    def run_config(self, overrides: dict[str, Any]) -> RunConfig:
        """The base run with the fields of all variants and of this one.

        Raises:
            ConfigError: the base file or an override is wrong, or a source that the base does not have.
        """
        changed = {**self.set, **overrides}
        kept = changed.pop(SOURCES, None)
        config = load_config(self.base, [f"{key}={json.dumps(value)}" for key, value in changed.items()])
        if kept is None:
            return config
        known = [source.name for source in config.sources]
        if not isinstance(kept, list) or not kept or not set(kept) <= set(known):
            raise ConfigError(f"sources: found {kept!r}, expected names out of {known}")
        return config.model_copy(update={"sources": [source for source in config.sources if source.name in kept]})


def matching(patterns: list[str], names: list[str]) -> list[str]:
    """Names that a pattern matches, in the order of the patterns."""
    found = [name for pattern in patterns for name in names if fnmatchcase(name, pattern)]
    return list(dict.fromkeys(found))


def load_ablation(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> AblationConfig:
    """Read an ablation file; overrides and errors as for `load_config`."""
    return load_file(path, overrides, AblationConfig)
