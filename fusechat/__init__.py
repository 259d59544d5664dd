"""FuseChat fuses chat LLMs of any architecture, size and tokenizer into one of the pivot's size.

The pipeline: dialogues are tokenized for every model; each source LLM scores them and leaves top-k rows
(`inference/`); the rows are laid on the pivot's tokens and vocabulary (`alignment/`); the pivot is trained on them
(`trainer/`); the targets are merged (`merge/`) and measured (`evaluation/`). `cluster/` runs the same stages on Ray. This
package is the ground under them (`config/`, `storage/`, `models/`, `text/`) and the roof (`app/`).

The names below are for notebooks and scripts (docs/python-api.md). Each is imported when it is first asked for, so that
`import fusechat` costs nothing.
"""

from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from merge import merge_checkpoints
    from trainer import fusion_loss

    from .app.connect import connect
    from .app.open_rows import open_rows
    from .app.python_api import align, generate, run, score, tokenize
    from .config import load_config

__all__ = [
    "__version__",
    "align",
    "connect",
    "fusion_loss",
    "generate",
    "load_config",
    "merge_checkpoints",
    "open_rows",
    "run",
    "score",
    "tokenize",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "load_config":
        from .config import load_config

        return load_config
    if name == "fusion_loss":
        from trainer import fusion_loss

        return fusion_loss
    if name == "merge_checkpoints":
        from merge import merge_checkpoints

        return merge_checkpoints
    if name == "open_rows":
        from .app.open_rows import open_rows

        return open_rows
    if name == "connect":
        from .app.connect import connect

        return connect
    from .app import python_api

    return getattr(python_api, name)
