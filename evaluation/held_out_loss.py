"""Held-out loss: a model's finished rows on the held-out dialogues in, nats of the target tokens of each dialogue out.

Nats divided by ln 2 and by the bytes of the assistant's content are bits per byte, which models of different
tokenizers share. Knows nothing about kinds of dialogue or intervals.
"""

from collections.abc import Sequence

import numpy as np

from fusechat.storage.row_store import RowStore

from .finite import refuse_no_numbers


def dialogue_nats(store: RowStore, lengths: np.ndarray, *, label: str, dialogue_ids: Sequence[str]) -> np.ndarray:
    """Loss of every dialogue that the model could read.

    Args:
        store: the model's rows.
        lengths: int64 [dialogues], tokens of each; 0 for one that was set aside for this model.
        label: what the model is called in messages.
        dialogue_ids: one for each dialogue, for messages.
    Returns:
        float64 [dialogues]: minus the summed log-probability of the target tokens, nats; NaN for a dialogue that was set
        aside.
    Raises:
        ModelError: a loss that is not a number; model and dialogue are named.
    """
    nats, layout = np.zeros(store.layout.num_dialogues), store.layout
    for shard in range(layout.num_shards):
        dialogues, labels = layout.dialogues(shard), store.label_logprobs(shard).astype(np.float64)
        counts = np.diff(store.row_offsets_of(dialogues))
        of_row = np.repeat(np.arange(len(dialogues)), counts)
        nats[dialogues.start : dialogues.stop] = -np.bincount(of_row, weights=labels, minlength=len(dialogues))
    refuse_no_numbers(nats, lambda place: f"{label}: its loss of held-out dialogue {dialogue_ids[place]!r}")
    nats[lengths == 0] = np.nan
    return nats
