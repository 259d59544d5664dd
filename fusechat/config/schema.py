"""run.schema.json, generated from the run file's sections, so that editors complete and check run files.

`python -m fusechat.config.schema > run.schema.json`; a test holds the two equal.
"""

import json
from typing import Any

from .run import RunConfig


def to_schema() -> dict[str, Any]:
    """JSON Schema of a run file; a field's docstring is its description."""
    return RunConfig.model_json_schema()


if __name__ == "__main__":
    print(json.dumps(to_schema(), indent=1, ensure_ascii=False))
