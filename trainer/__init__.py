"""Pivot + rows -> target: the loss, the data and the training, on TRL's SFTTrainer.

Goes in: a run configuration and three artifacts (the pivot's tokens, the pivot's own rows, a source's rows laid on the
pivot's tokens). Comes out: a Hugging Face folder. Knows nothing about how the rows were made or what is done with the
targets. `fusion_trainer.py` is the only file that imports trl; the names below are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .fused_loss import fused_linear_fusion_loss
    from .losses import fusion_loss
    from .stage import run

_MODULES = {"fusion_loss": ".losses", "fused_linear_fusion_loss": ".fused_loss", "run": ".stage"}

__all__ = ["fused_linear_fusion_loss", "fusion_loss", "run"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
