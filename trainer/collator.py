"""Units in, one batch of tensors out: padded dialogues, or packs in which no dialogue sees another.

Beside the model's inputs a batch holds `fusion`: for every target token where the hidden state stands that predicts it,
its label and its row. Knows nothing about the model or the loss.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .batches import EMPTY_UNIT
from .fusion_dataset import Example, FusionDataset

FUSION_KEY = "fusion"


class FusionCollator:
    """Reads the examples of some units and lays them into one batch."""

    def __init__(
        self, dataset: FusionDataset, units: Sequence[np.ndarray], *, pad_token_id: int, packed: bool = False,
        flat: bool = False, pad_to_multiple_of: int | None = None, fusion_weight: float = 0.1,
    ) -> None:  # fmt: skip
        """
        Args:
            fusion_weight: of a row of a source that is trusted wholly; the source's trust multiplies it.
            units: unit -> its dialogues; more than one in a pack.
            packed: mark the borders of dialogues by position ids instead of an attention mask.
            flat: with `packed`, put all units of a batch into one sequence (FlashAttention).
        """
        self._dataset, self._units, self._pad = dataset, units, pad_token_id
        self._packed, self._flat, self._multiple = packed, flat, pad_to_multiple_of or 1
        self._fusion_weight = fusion_weight

    def __call__(self, features: Sequence[dict[str, int]]) -> dict[str, Tensor | dict[str, Tensor]]:
        """Batch of `{"unit": number}` features.

        Returns:
            `input_ids` int64 [batch, tokens] and `attention_mask` or `position_ids`; `fusion`: `hidden_index`, `labels`
            int64 [rows] (the index counts batch * tokens), `topk_ids` int64 and `topk_logprobs` float32 [rows, k] (nats),
            `source_share` float32 [rows], `row_weights` float32 [rows], `dialogues` and `num_rows` (of each) int64 [n],
            `without_source` int64 []; and where the student's own answers are among the dialogues, `label_weights` float32 [rows].
        """
        numbers = [int(feature["unit"]) for feature in features]
        sequences = [
            [self._dataset.read(int(dialogue)) for dialogue in ([] if number == EMPTY_UNIT else self._units[number])]
            for number in numbers
        ]
        if self._flat:
            sequences = [[example for sequence in sequences for example in sequence]]
        return self._batch(sequences)

    def _batch(self, sequences: list[list[Example]]) -> dict[str, Tensor | dict[str, Tensor]]:
        longest = max(sum(len(example.token_ids) for example in sequence) for sequence in sequences)
        width = -(-max(longest, 2) // self._multiple) * self._multiple
        shape = (len(sequences), width)
        input_ids = np.full(shape, self._pad, dtype=np.int64)
        position_ids = np.zeros(shape, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        hidden_index: list[np.ndarray] = []
        for row, sequence in enumerate(sequences):
            start = 0
            for example in sequence:
                end = start + len(example.token_ids)
                input_ids[row, start:end] = example.token_ids
                position_ids[row, start:end] = np.arange(end - start)
                # The hidden state before a token predicts it.
                hidden_index.append(row * width + start + example.positions - 1)
                start = end
            mask[row, :start] = 1
            position_ids[row, start:] = np.arange(width - start)
        borders = {"position_ids": position_ids} if self._packed else {"attention_mask": mask}
        tensors = {"input_ids": input_ids, **borders}
        examples = [example for sequence in sequences for example in sequence]
        batch: dict[str, Tensor | dict[str, Tensor]] = {
            name: torch.from_numpy(array) for name, array in tensors.items()
        }
        batch[FUSION_KEY] = _fusion(examples, hidden_index, self._fusion_weight, self._dataset.has_own)
        return batch


def _fusion(
    examples: list[Example], hidden_index: list[np.ndarray], fusion_weight: float, has_own: bool
) -> dict[str, Tensor]:
    k = max([example.supervision.topk_ids.shape[1] for example in examples], default=1)
    rows = sum(len(example.positions) for example in examples)
    ids = np.zeros((rows, k), dtype=np.int64)
    logprobs = np.full((rows, k), -np.inf, dtype=np.float32)
    start = 0
    for example in examples:
        chosen = example.supervision
        block = slice(start, start + len(example.positions))
        ids[block, : chosen.topk_ids.shape[1]] = chosen.topk_ids
        logprobs[block, : chosen.topk_logprobs.shape[1]] = chosen.topk_logprobs
        start = block.stop
    empty = np.empty(0, dtype=np.int64)
    labels = [example.token_ids[example.positions].astype(np.int64) for example in examples]
    shares = [example.supervision.source_share for example in examples]
    # Beside the student's own words there is no label to share the weight with.
    parts = [(1.0 if e.is_own else fusion_weight) * e.supervision.trust for e in examples]
    counts = [len(example.positions) for example in examples]
    weights = np.repeat(np.array(parts, np.float32), counts)
    of_labels = {}
    if has_own:
        left = 1 - weights * np.isfinite(logprobs).any(axis=1)
        is_own = np.repeat(np.array([example.is_own for example in examples], bool), counts)
        of_labels = {"label_weights": torch.from_numpy(np.where(is_own, 0, left).astype(np.float32))}
    return of_labels | {
        "hidden_index": torch.from_numpy(np.concatenate([empty, *hidden_index])),
        "labels": torch.from_numpy(np.concatenate([empty, *labels])),
        "topk_ids": torch.from_numpy(ids),
        "topk_logprobs": torch.from_numpy(logprobs),
        "source_share": torch.from_numpy(np.concatenate([np.empty(0, np.float32), *shares])),
        "row_weights": torch.from_numpy(weights),
        "dialogues": torch.tensor([example.dialogue for example in examples], dtype=torch.int64),
        "num_rows": torch.tensor(counts, dtype=torch.int64),
        "without_source": torch.tensor(sum(example.supervision.without_source for example in examples)),
    }
