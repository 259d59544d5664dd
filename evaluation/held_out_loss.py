"""Held-out loss: a network and a tokens artifact in, nats of the target tokens of each dialogue out.

Nats divided by ln 2 and by the bytes of the assistant's content are bits per byte, which models of different
tokenizers share. Logits are made only where a target token is predicted, a block of rows at a time, so that a
vocabulary of 262k costs no more memory than a small one. Knows nothing about kinds of dialogue, intervals or files.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from fusechat.errors import ModelError
from fusechat.models.model_limits import positions_of
from fusechat.storage.tokens import Tokens

LOGITS_PER_BLOCK = 2**24
LOGITS_PER_GPU_BLOCK = 2**28
"""Elements of one [rows, vocabulary] block: 64 MiB and 1 GiB in float32."""


@torch.inference_mode()
def dialogue_nats(
    network: PreTrainedModel,
    tokens: Tokens,
    *,
    label: str,
    dialogue_ids: Sequence[str],
    batch_tokens: int,
    on_batch: Callable[[int], None] = lambda num_tokens: None,
) -> np.ndarray:
    """Score every dialogue that the network has positions for.

    Args:
        network: a causal LM of transformers.
        label: what the model is called in messages.
        dialogue_ids: one for each dialogue, for messages.
        batch_tokens: padded tokens of one batch; a longer dialogue is a batch of its own.
        on_batch: told the number of tokens of each batch when it is done.
    Returns:
        float64 [dialogues]: minus the summed log-probability of the target tokens, nats; NaN for a dialogue that was set
        aside for this model or is longer than the network's positions.
    Raises:
        ModelError: the network gives a loss that is not a number; model and dialogue are named.
    """
    nats = np.full(tokens.num_dialogues, np.nan)
    fitting = np.flatnonzero((tokens.lengths > 0) & (tokens.lengths <= max_positions(network)))
    for batch in length_batches(tokens.lengths, fitting, batch_tokens):
        nats[batch] = _batch_nats(network, tokens, batch)
        bad = batch[~np.isfinite(nats[batch])]
        if len(bad):
            raise ModelError(
                f"{label}: its loss of held-out dialogue {dialogue_ids[bad[0]]!r} is {nats[bad[0]]}, expected a finite "
                "number of nats; its weights are damaged or its activations overflow: look at how it was trained or "
                "merged, or set evaluation.held_out.dtype: float32"
            )
        on_batch(int(tokens.lengths[batch].sum()))
    return nats


def max_positions(network: PreTrainedModel) -> int:
    """Longest input of a network, tokens."""
    return positions_of(network.config.to_dict(), network.config.model_type) or np.iinfo(np.int64).max


def length_batches(lengths: np.ndarray, dialogues: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Group dialogues of similar length, longest first, so that a batch too large for the memory shows at once.

    Args:
        lengths: int [all dialogues], tokens.
        dialogues: int [n], the dialogues to group.
    Returns:
        arrays of dialogue numbers; length of the longest times dialogues <= batch_tokens, or a single dialogue.
    """
    order = dialogues[np.argsort(-lengths[dialogues], kind="stable")]
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size


def _batch_nats(network: PreTrainedModel, tokens: Tokens, batch: np.ndarray) -> np.ndarray:
    """float64 [len(batch)]: nats of each dialogue's target tokens."""
    ids, is_scored = padded_batch(tokens, batch)
    places, positions = np.nonzero(is_scored[:, 1:])
    row_nats = label_nats(network, torch.from_numpy(ids), places, positions)
    return np.bincount(places, weights=row_nats, minlength=len(batch))


def padded_batch(tokens: Tokens, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 ids and bool target marks of some dialogues, [batch, width] each.

    Padding stands on the right, where a causal network cannot see it: no attention mask is needed.
    """
    width = int(tokens.lengths[batch].max())
    ids = np.zeros((len(batch), width), np.int64)
    is_scored = np.zeros((len(batch), width), bool)
    for place, dialogue in enumerate(batch):
        part = tokens.tokens_of(int(dialogue))
        ids[place, : tokens.lengths[dialogue]] = tokens.token_ids[part]
        is_scored[place, : tokens.lengths[dialogue]] = tokens.is_scored[part]
    return ids, is_scored


def label_nats(network: PreTrainedModel, ids: torch.Tensor, places: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Loss of the token after each given position.

    Args:
        ids: int64 [batch, width].
        places, positions: int64 [rows]; row r predicts ids[places[r], positions[r] + 1].
    Returns:
        float64 [rows], nats.
    """
    nats, labels = np.empty(len(places)), ids[torch.from_numpy(places), torch.from_numpy(positions) + 1]
    for block, logits in logit_blocks(network, ids, places, positions):
        chosen = logits.gather(1, labels[block, None].to(logits.device))[:, 0]
        nats[block] = (logits.logsumexp(1) - chosen).double().cpu().numpy()
    return nats


def logit_blocks(
    network: PreTrainedModel, ids: torch.Tensor, places: np.ndarray, positions: np.ndarray
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Logits after the given positions, a block of rows at a time.

    Args:
        ids, places, positions: as for `label_nats`.
    Returns:
        (which rows, their logits, float32 [rows of the block, vocabulary]).
    """
    output = network.base_model(input_ids=ids.to(network.device), use_cache=False)
    hidden = output.last_hidden_state
    rows = hidden[torch.from_numpy(places).to(hidden.device), torch.from_numpy(positions).to(hidden.device)]
    elements = LOGITS_PER_BLOCK if hidden.device.type == "cpu" else LOGITS_PER_GPU_BLOCK
    block_rows = max(1, elements // network.get_output_embeddings().weight.shape[0])
    for start in range(0, len(rows), block_rows):
        block = slice(start, start + block_rows)
        yield block, head_logits(network, output, rows[block]).float()


def head_logits(network: PreTrainedModel, body_output: Any, rows: torch.Tensor) -> torch.Tensor:
    """Logits [rows, vocabulary] of hidden states [rows, width], by the network's own code.

    What follows the head differs between architectures (Gemma caps the logits, Granite and Cohere scale them), so the
    network itself is called, with a body that only hands over the given hidden states.
    """
    body = network.base_model
    body_output.last_hidden_state = rows[None]
    body.forward = lambda *_, **__: body_output
    try:
        one_token = torch.zeros((1, 1), dtype=torch.int64, device=rows.device)
        logits: torch.Tensor = network(input_ids=one_token, use_cache=False).logits[0]
        return logits
    finally:
        del body.forward
