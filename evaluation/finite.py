"""Figures of a model that are no numbers are refused: nats in; a ModelError, or nothing, out."""

from collections.abc import Callable

import numpy as np

from fusechat.errors import ModelError


def refuse_no_numbers(nats: np.ndarray, what: Callable[[int], str]) -> None:
    """Look for the first value that is not finite.

    Args:
        nats: float [dialogues].
        what: names the figure at a place.
    Raises:
        ModelError: there is one; it is named.
    """
    bad = np.flatnonzero(~np.isfinite(nats))
    if len(bad):
        raise ModelError(
            f"{what(int(bad[0]))} is {nats[bad[0]]}, expected a finite number of nats; its weights are damaged or its "
            "activations overflow: look at how it was trained or merged, or set evaluation.held_out.dtype: float32"
        )
