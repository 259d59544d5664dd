"""What ends an answer by a model's own files: a folder in, ids out."""

import json
from pathlib import Path


def own_stop_ids(folder: Path) -> list[int]:
    """End-of-sequence ids that a model's own files name."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
        if named is not None:
            return named if isinstance(named, list) else [named]
    return []
