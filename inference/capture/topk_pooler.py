"""The capture: turns hidden states into packed top-k rows inside the engine, for target tokens only.

Goes in: the hidden states of one engine step and, per request, its target tokens and perhaps ids chosen for each. Comes
out: per finished request one int32 [rows, 2k+2] tensor, 1+m columns wider with m chosen ids, in the host's memory (see
`rows.py`). The head is multiplied with the rows that predict target tokens and with no other, in blocks, so that logits never
take more than `BLOCK_BYTES`. Knows nothing about files or text.

Nothing here waits for the device, so that an engine may queue its next step behind this one: what the pooler needs of a
request it reads from the request, a step's row numbers go to the device in one transfer, and the rows of all requests that
finish in a step come back in one, into pinned memory. That transfer stands on the stream of the step itself: vLLM's runners
hand an output over when all that the stream held has been done, and some hundred KiB take 20 microseconds of it.
"""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.distributed import tensor_model_parallel_all_gather
from vllm.model_executor.layers.pooler import PoolingParamsUpdate
from vllm.model_executor.layers.pooler.abstract import Pooler
from vllm.tasks import PoolingTask
from vllm.v1.pool.metadata import PoolingMetadata, PoolingStates

from fusechat.errors import EngineError

from ..engine.vllm_internals import chunks_of
from .rows import decode_chosen, decode_targets, packed_width
from .topk import merge_chosen, merge_ranks, reduce_block, reduce_chosen

TASK: PoolingTask = "token_classify"
"""The pooling task under which vLLM's runners call a pooler for every token."""
TARGETS = "targets"
"""Key of a request's target tokens (`rows.encode_targets`) in PoolingParams.extra_kwargs."""
CHOSEN = "chosen"
"""Key of the ids chosen for each of them (`rows.encode_chosen`), where there are any."""
BLOCK_BYTES = 2**29
"""GPUs: float32 logits of one block of rows."""
CPU_BLOCK_ROWS = 128
"""CPUs: rows of one block; measured best of 32 to 2048."""
CHOSEN_BLOCKS = 4
"""A block of rows with chosen ids is so many times smaller: its logits are copied, to sum up those that are not chosen."""


class TopKPooler(Pooler):
    """Runs on every tensor-parallel rank of the last pipeline stage, with the same requests on each."""

    def __init__(
        self, compute_logits: Callable[[Tensor], Tensor], heads: Sequence[Any], *, k: int, columns: int
    ) -> None:
        """
        Args:
            compute_logits: the model's own, giving this rank's columns.
            heads: the model's `ShardLogits`; the one that ran last knows which columns these are.
            k: entries kept per row.
            columns: about how many columns of the vocabulary this rank holds; sizes the blocks.
        """
        super().__init__()
        self.k, self.columns = k, columns
        # In a list: as attributes, the model's parameters would be registered a second time.
        self._held: list[Any] = [compute_logits, list(heads)]

    def get_supported_tasks(self) -> AbstractSet[PoolingTask]:
        return {TASK}

    def get_pooling_updates(self, task: PoolingTask) -> PoolingParamsUpdate:
        return PoolingParamsUpdate()  # no token ids: the runner would gather those of all prompts anew in every step

    def forward(self, hidden_states: Tensor, pooling_metadata: PoolingMetadata) -> list[Tensor | None]:
        """hidden_states [tokens of this step, hidden] -> per request its packed rows, None while it is unfinished."""
        cursor = pooling_metadata.get_pooling_cursor()
        stops, counts = cursor.seq_lens_cpu.numpy(), cursor.num_scheduled_tokens_cpu.numpy()
        starts = stops - counts
        first = np.cumsum(counts) - counts
        targets = [
            targets_of_chunk(params.extra_kwargs, int(start), int(stop))
            for params, start, stop in zip(pooling_metadata.pooling_params, starts, stops, strict=True)
        ]
        places = [rows - 1 - start + offset for (rows, *_), start, offset in zip(targets, starts, first, strict=True)]
        labels = np.concatenate([of_one for _, of_one, _ in targets])
        chosen = [of_one for _, _, of_one in targets]
        packed = self._score(hidden_states, np.concatenate(places), labels, join_chosen(chosen, list(map(len, places))))
        widths = [packed_width(self.k, None if of_one is None else of_one.shape[1]) for of_one in chosen]
        parts = packed.split(list(map(len, places)))
        chunks = [part[:, :width] for part, width in zip(parts, widths, strict=True)]
        states, finished = pooling_metadata.pooling_states, cursor.get_finished_mask()
        return hand_over([keep_chunk(*one) for one in zip(states, starts.tolist(), chunks, finished, strict=True)])

    def _score(
        self, hidden_states: Tensor, places: np.ndarray, labels: np.ndarray, chosen_ids: np.ndarray | None
    ) -> Tensor:
        device = hidden_states.device
        if not len(places):
            width = packed_width(self.k, None if chosen_ids is None else chosen_ids.shape[1])
            return torch.empty((0, width), dtype=torch.int32, device=device)
        block = CPU_BLOCK_ROWS if device.type == "cpu" else max(1, BLOCK_BYTES // (4 * self.columns))
        if chosen_ids is None:
            where = to_device(np.stack([places, labels]), device)
            return torch.cat([self._score_block(hidden_states[at], of) for at, of in where.split(block, dim=1)])
        where = to_device(np.stack([places, labels, *chosen_ids.T]), device)
        blocks = where.split(max(1, block // CHOSEN_BLOCKS), dim=1)
        return torch.cat([self._score_block(hidden_states[part[0]], part[1], part[2:].T) for part in blocks])

    def _score_block(self, hidden_states: Tensor, labels: Tensor, chosen_ids: Tensor | None = None) -> Tensor:
        compute_logits, heads = self._held
        for head in heads:
            head.shard = None
        logits = compute_logits(hidden_states)
        used = next((head.shard for head in heads if head.shard is not None), None)
        if used is None:
            raise EngineError(
                "the model's logits do not come from vLLM's LogitsProcessor, so the top-k pooler cannot read its head; "
                "set extraction.capture to prompt_logprobs"
            )
        shard, num_ranks = used
        own = logits[:, : shard.num_org_elements]  # behind the vocabulary stand padding and adapters' columns
        first_id = shard.org_vocab_start_index
        reduced = reduce_block(own, labels, self.k, first_id=first_id)
        if chosen_ids is not None:
            reduced = torch.cat([reduced, reduce_chosen(own, chosen_ids, first_id=first_id).view(torch.int32)], dim=1)
        if num_ranks == 1:
            gathered = reduced[:, None]
        else:
            # Bits travel as float32, because the CPU backend's all-gather moves no integers.
            bits = tensor_model_parallel_all_gather(reduced.view(torch.float32)[:, None], dim=1)
            gathered = bits.contiguous().view(torch.int32)
        if chosen_ids is None:
            return merge_ranks(gathered)
        width = packed_width(self.k, None)
        packed = merge_ranks(gathered[..., :width].contiguous())
        logsumexp = packed[:, -1:].view(torch.float32)
        chosen = merge_chosen(gathered[..., width:].contiguous().view(torch.float32), logsumexp)
        return torch.cat([packed, chosen.view(torch.int32)], dim=1)


def targets_of_chunk(
    options: dict[str, Any] | None, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """int64 rows that the hidden states of positions start..stop-1 predict, the ids that stand there, and those chosen.

    Row t comes from position t - 1. `options[TARGETS]` holds the request's target tokens, `options[CHOSEN]` int64 [rows, m]
    ids where the caller chose any; without options (vLLM's memory profile) every position gives a row, of any label.
    """
    if options is None:
        return np.arange(start + 1, stop + 1), np.zeros(stop - start, dtype=np.int64), None
    rows, labels = decode_targets(options[TARGETS])
    low, high = np.searchsorted(rows, (start + 1, stop + 1))
    chosen = decode_chosen(options[CHOSEN], len(rows))[low:high].astype(np.int64) if CHOSEN in options else None
    return rows[low:high].astype(np.int64), labels[low:high].astype(np.int64), chosen


def join_chosen(parts: Sequence[np.ndarray | None], counts: Sequence[int]) -> np.ndarray | None:
    """int64 [rows of all requests, widest m], padded with -1; None where no request of the step chose ids.

    Args:
        parts: int64 [rows, m] per request, or None.
        counts: rows of each request.
    """
    widest = max((part.shape[1] for part in parts if part is not None), default=None)
    if widest is None:
        return None
    joined = np.full((sum(counts), widest), -1, dtype=np.int64)
    start = 0
    for part, count in zip(parts, counts, strict=True):
        if part is not None:
            joined[start : start + count, : part.shape[1]] = part
        start += count
    return joined


def keep_chunk(state: PoolingStates, start: int, chunk: Tensor, finished: bool) -> list[Tensor] | None:
    """Add the rows of a prefill chunk to the request's; give all of them, in order, once it is finished.

    A preempted request begins again at an earlier position, and vLLM's first model runner does not clear its state:
    what is kept from `start` on is dropped, so that each row stands once.
    """
    kept = chunks_of(state)
    kept[:] = [*((at, rows) for at, rows in kept if at < start), (start, chunk)]
    if not finished:
        return None
    parts = [rows for _, rows in kept]
    state.clean()
    return parts


def hand_over(parts: list[list[Tensor] | None]) -> list[Tensor | None]:
    """The rows of each finished request (None for the others) in the host's memory, moved there in one transfer."""
    finished = [of_one for of_one in parts if of_one is not None]
    if not finished:
        return [None] * len(parts)
    # Flat, because requests with chosen ids have more columns than others.
    flat = to_host(torch.cat([rows.flatten() for of_one in finished for rows in of_one]))
    pieces = iter(flat.split([sum(rows.numel() for rows in of_one) for of_one in finished]))
    return [None if of_one is None else next(pieces).view(-1, of_one[0].shape[1]) for of_one in parts]


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """The same values on a device. From pinned memory, because a copy from any other waits for what the device does."""
    here = torch.from_numpy(values)
    return here if device.type == "cpu" else here.pin_memory().to(device, non_blocking=True)


def to_host(values: Tensor) -> Tensor:
    """The same values in pinned memory, to be read when all is done that their stream holds now; on a CPU at once."""
    if values.device.type == "cpu":
        return values
    pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return pinned.copy_(values, non_blocking=True)
