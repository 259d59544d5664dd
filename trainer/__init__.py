"""Pivot + rows -> target: the loss, the data and the training, on TRL's SFTTrainer.

Goes in: a run configuration and three artifacts (the pivot's tokens, the pivot's own rows, a source's rows laid on the
pivot's tokens). Comes out: a Hugging Face folder. Knows nothing about how the rows were made or what is done with the
targets. `fusion_trainer.py` and `trl_internals.py` are the only files that import trl; the names below are loaded when they are first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .fused_loss import fused_linear_fusion_loss
    from .losses import fusion_loss
    from .stage import run

__all__ = ["fused_linear_fusion_loss", "fusion_loss", "run"]


def __getattr__(name: str) -> Any:
    if name == "fusion_loss":
        from .losses import fusion_loss

        return fusion_loss
    if name == "fused_linear_fusion_loss":
        from .fused_loss import fused_linear_fusion_loss

        return fused_linear_fusion_loss
    if name == "run":
        from .stage import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
