"""The capture: turns hidden states into packed top-k rows inside the engine, for target tokens only.

Goes in: the hidden states of one engine step and, per request, the ranges of its target tokens. Comes out: per finished
request one int32 [rows, 2k+2] tensor (see `rows.py`). The head is multiplied with the rows that predict target tokens
and with no other, in blocks, so that logits never take more than `BLOCK_BYTES`. Knows nothing about files or text.
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

from fusechat.errors import TeacherError

from ..engine.vllm_internals import chunks_of
from .topk import merge_ranks, reduce_block

TASK: PoolingTask = "token_classify"
"""The pooling task under which vLLM's runners call a pooler for every token."""
RANGES = "target_ranges"
"""Key of a request's target ranges in PoolingParams.extra_kwargs."""
BLOCK_BYTES = 2**29
"""GPUs: float32 logits of one block of rows."""
CPU_BLOCK_ROWS = 128
"""CPUs: rows of one block; measured best of 32 to 2048."""


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
        return PoolingParamsUpdate(requires_token_ids=True)

    def forward(self, hidden_states: Tensor, pooling_metadata: PoolingMetadata) -> list[Tensor | None]:
        """hidden_states [tokens of this step, hidden] -> per request its packed rows, None while it is unfinished."""
        cursor = pooling_metadata.get_pooling_cursor()
        stops, counts = cursor.seq_lens_cpu.numpy(), cursor.num_scheduled_tokens_cpu.numpy()
        starts = stops - counts
        first = np.cumsum(counts) - counts
        prompts = pooling_metadata.get_prompt_token_ids_cpu()
        rows = [
            rows_of_chunk(params.extra_kwargs, int(start), int(stop))
            for params, start, stop in zip(pooling_metadata.pooling_params, starts, stops, strict=True)
        ]
        places = [at - 1 - start + offset for at, start, offset in zip(rows, starts, first, strict=True)]
        labels = [labels_at(prompt.numpy(), at) for prompt, at in zip(prompts, rows, strict=True)]
        packed = self._score(hidden_states, np.concatenate(places), np.concatenate(labels))
        chunks = packed.split([len(at) for at in rows])
        states, finished = pooling_metadata.pooling_states, cursor.get_finished_mask()
        return [keep_chunk(*of_one) for of_one in zip(states, starts.tolist(), chunks, finished, strict=True)]

    def _score(self, hidden_states: Tensor, places: np.ndarray, labels: np.ndarray) -> Tensor:
        device = hidden_states.device
        block = CPU_BLOCK_ROWS if device.type == "cpu" else max(1, BLOCK_BYTES // (4 * self.columns))
        places_there = torch.from_numpy(places).to(device, non_blocking=True).split(block)
        labels_there = torch.from_numpy(labels).to(device, non_blocking=True).split(block)
        if not len(places):
            return torch.empty((0, 2 * self.k + 2), dtype=torch.int32, device=device)
        return torch.cat(
            [self._score_block(hidden_states[at], of) for at, of in zip(places_there, labels_there, strict=True)]
        )

    def _score_block(self, hidden_states: Tensor, labels: Tensor) -> Tensor:
        compute_logits, heads = self._held
        for head in heads:
            head.shard = None
        logits = compute_logits(hidden_states)
        used = next((head.shard for head in heads if head.shard is not None), None)
        if used is None:
            raise TeacherError(
                "the model's logits do not come from vLLM's LogitsProcessor, so the top-k pooler cannot read its head; "
                "set extraction.capture to prompt_logprobs"
            )
        shard, num_ranks = used
        own = logits[:, : shard.num_org_elements]  # behind the vocabulary stand padding and adapters' columns
        reduced = reduce_block(own, labels, self.k, first_id=shard.org_vocab_start_index)
        if num_ranks == 1:
            return merge_ranks(reduced[:, None])
        # Bits travel as float32, because the CPU backend's all-gather moves no integers.
        bits = tensor_model_parallel_all_gather(reduced.view(torch.float32)[:, None], dim=1)
        return merge_ranks(bits.contiguous().view(torch.int32))


def rows_of_chunk(options: dict[str, Any] | None, start: int, stop: int) -> np.ndarray:
    """int64 rows that the hidden states of positions start..stop-1 predict: row t comes from position t - 1.

    `options[RANGES]` holds [start, stop, ...] of the target tokens; without options (vLLM's memory profile) every row.
    """
    ranges = [1, stop + 1] if options is None else options[RANGES]
    pairs = zip(ranges[::2], ranges[1::2], strict=True)
    parts = [np.arange(max(low, start + 1), min(high, stop + 1)) for low, high in pairs]
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])


def labels_at(prompt: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """int64 [rows]: the ids at the rows. vLLM's memory profile gives fewer ids than positions; there any id does."""
    return prompt[np.minimum(rows, len(prompt) - 1)].astype(np.int64)


def keep_chunk(state: PoolingStates, start: int, chunk: Tensor, finished: bool) -> Tensor | None:
    """Add the rows of a prefill chunk to the request's; give all of them once it is finished.

    A preempted request begins again at an earlier position, and vLLM's first model runner does not clear its state:
    what is kept from `start` on is dropped, so that each row stands once.
    """
    kept = chunks_of(state)
    kept[:] = [*((at, rows) for at, rows in kept if at < start), (start, chunk)]
    if not finished:
        return None
    rows = torch.cat([rows for _, rows in kept]) if len(kept) > 1 else chunk
    state.clean()
    return rows
