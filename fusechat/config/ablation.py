"""The ablation file: a base run, what is changed in it, and the tables that are wanted. YAML in, a frozen record out."""

import itertools
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from ..errors import ConfigError
from .file import load_file, read_overrides
from .paths import FolderPath, PathText
from .run import RunConfig
from .section import Section

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
        if empty := [key for key, values in self.grid.items() if not values]:
            raise ValueError(f"grid: {empty[0]} has no value; give at least one")
        names = [name for name, _ in self._named_rows()]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"two rows are called {twice[0]!r}; rename the variant, or take one of the grid's values out"
            )
        return self

    def rows(self) -> dict[str, dict[str, Any]]:
        """Row name -> overrides of the run that it shows; one row of no override where the rows are models."""
        rows = self._named_rows() or [("", {})]
        return {name: {**self.set, **overrides} for name, overrides in rows}

    def _named_rows(self) -> list[tuple[str, dict[str, Any]]]:
        """The variants, then the grid's combinations, each named by the last parts of its fields and their values."""
        products = itertools.product(*self.grid.values()) if self.grid else ()
        combinations = [dict(zip(self.grid, values, strict=True)) for values in products]
        named = [(", ".join(f"{key.rsplit('.', 1)[-1]} {value}" for key, value in c.items()), c) for c in combinations]
        return [*self.variants.items(), *named]

    def measured(self, config: RunConfig) -> list[str]:
        """Ids of the models that rows show of a run: all that `models` matches, in its order, or `model`.

        Raises:
            ConfigError: a pattern or model that the run does not measure.
        """
        known, wanted = config.measured_ids, []
        for pattern in self.models or [self.model]:
            names = [name for name in known if (fnmatchcase(name, pattern) if self.models else name == pattern)]
            wanted += names
            if not names:
                raise ConfigError(
                    f"tables: {self.title!r}: found {pattern!r}, the run measures {', '.join(known)}; name one of these, or "
                    "change evaluation.models, evaluation.sources or training.train_control"
                )
        return list(dict.fromkeys(wanted))


class AblationConfig(Section):
    """A whole ablation."""

    base: PathText
    """Run file that the variants are made from."""
    output: FolderPath = Path("runs/ablation")
    """Folder of all runs, of what they share, and of the tables."""
    seeds: list[int] = Field([0], min_length=1)
    """Every variant is run with each of them; intervals need at least three."""
    set: dict[str, Any] = {}
    """Fields changed in every variant."""
    tables: list[TableSection] = Field(min_length=1)
    """What is compared."""

    @model_validator(mode="after")
    def _each_once(self) -> "AblationConfig":
        titles = [table.title for table in self.tables]
        if twice := sorted({title for title in titles if titles.count(title) > 1}):
            raise ValueError(f"tables: two are called {twice[0]!r}; give each a title of its own")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: found {self.seeds}, expected each once")
        return self

    def run_config(self, overrides: dict[str, Any]) -> RunConfig:
        """The base run with the fields of all variants and of this one.

        Raises:
            ConfigError: the base file or an override is wrong, or a source that the base does not have.
        """
        changed = {**self.set, **overrides}
        kept = changed.pop(SOURCES, None)
        config = load_file(self.base, list(changed.items()), RunConfig)
        if kept is None:
            return config
        known = [source.name for source in config.sources]
        if not isinstance(kept, list) or not kept or not set(kept) <= set(known):
            raise ConfigError(f"sources: found {kept!r}, expected names out of {known}")
        sources = [source for source in config.dump()["sources"] if source["name"] in kept]
        # Read anew: what is measured may name a source that is left out.
        return load_file(self.base, [*changed.items(), (SOURCES, sources)], RunConfig)


def load_ablation(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> AblationConfig:
    """Read an ablation file; overrides and errors as for `load_config`."""
    return load_file(path, read_overrides(overrides), AblationConfig)
