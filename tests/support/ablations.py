"""An ablation of a run file, and a change of the run that asks questions."""

from pathlib import Path
from typing import Any

from fusechat.config.ablation import AblationConfig

ASKED = {"evaluation.questions.sets": [{"name": "own", "file": "asked.txt"}]}
"""A field of a run file: questions in a file."""


def ablation_of(run_file: Path, tmp_path: Path, **fields: Any) -> AblationConfig:
    """Of one table that varies the merge, unless the fields say otherwise."""
    tables = fields.pop("tables", [{"title": "t", "grid": {"merge.method": ["sce", "linear"]}}])
    return AblationConfig.model_validate(
        {"base": str(run_file), "output": str(tmp_path / "ablation"), "tables": tables, **fields}
    )
