"""Memory of the logits: never more than a few blocks live at once, whatever the step and the vocabulary.

Tensors on `meta` have shapes and no memory, so the path of GPUs is counted here at its true size, and so is the step with
which vLLM measures how much memory the KV cache may take. The path of CPUs is counted on real tensors.
"""

import os
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from vllm import PoolingParams
from vllm.v1.pool.metadata import PoolingMetadata, PoolingStates

from fusechat.models.engine_memory import POOLER_BLOCK_BYTES, POOLER_WORK
from inference.capture import topk_gpu, topk_pooler
from inference.capture.rows import encode_targets
from inference.capture.topk_pooler import BLOCK_BYTES, CPU_BLOCK_ROWS, TARGETS, TASK, TopKPooler

VOCABULARY, HIDDEN, K = 152_064, 64, 10


class LiveBytes(TorchDispatchMode):
    """Peak of the bytes that are alive at once, of tensors made inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.largest = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor):
                self._count(tensor)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak, self.largest = max(self.peak, self.live), max(self.largest, size)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class Head:
    """A head of one rank over the whole vocabulary, of float32 logits."""

    def __init__(self, device: str, columns: int) -> None:
        self.weight = torch.empty(columns, HIDDEN, device=device).normal_()
        self.shard: Any = None
        self.columns = columns

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.shard = (SimpleNamespace(num_org_elements=self.columns, org_vocab_start_index=0), 1)
        return hidden @ self.weight.T


def run_step(device: str, num_tokens: int, *, profile: bool, columns: int = VOCABULARY) -> tuple[LiveBytes, int]:
    """One engine step over one prompt; (what was alive, rows that came out)."""
    head = Head(device, columns)
    pooler = TopKPooler(head.compute_logits, [head], k=K, columns=columns)
    ids, is_scored = np.random.default_rng(0).integers(0, columns, num_tokens), np.arange(num_tokens) > 0
    targets = None if profile else {TARGETS: encode_targets(ids, is_scored)}
    metadata = PoolingMetadata(
        prompt_lens=torch.tensor([num_tokens]),
        prompt_token_ids=None,
        prompt_token_ids_cpu=None,
        pooling_params=[PoolingParams(task=TASK, extra_kwargs=targets)],
        pooling_states=[PoolingStates()],
    )
    metadata.build_pooling_cursor(np.array([num_tokens]), torch.tensor([num_tokens]), device=torch.device("cpu"))
    hidden = torch.empty(num_tokens, HIDDEN, device=device).normal_()
    with LiveBytes() as bytes_:
        (rows,) = pooler(hidden, metadata)
    assert rows is not None
    return bytes_, len(rows)


class NoKernel:
    """Stands in for a Triton kernel, which would write to memory that is there already and takes none itself."""

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, **constants: None


@pytest.fixture(autouse=True)
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors without memory nothing runs and nothing is pinned, which takes a device."""
    monkeypatch.setattr(topk_gpu, "_summarise", NoKernel())
    monkeypatch.setattr(topk_pooler, "to_device", lambda values, device: torch.from_numpy(values).to(device))
    monkeypatch.setattr(topk_pooler, "to_host", lambda values: values)


@pytest.mark.parametrize("num_tokens", [2_048, 16_384])
@pytest.mark.parametrize("profile", [True, False])
def test_gpu_step_of_any_length_holds_a_few_blocks_of_logits(num_tokens: int, profile: bool) -> None:
    found, rows = run_step("meta", num_tokens, profile=profile)
    assert rows == num_tokens - 1 + profile
    assert found.largest <= BLOCK_BYTES
    assert found.peak <= POOLER_WORK * BLOCK_BYTES < 4 * num_tokens * VOCABULARY


def test_gpu_memory_profile_sees_the_peak_of_real_work() -> None:
    """vLLM sizes the KV cache by its profile: what a real step takes must not exceed it."""
    assert run_step("meta", 2_048, profile=False)[0].peak <= run_step("meta", 2_048, profile=True)[0].peak


def test_cpu_step_holds_a_few_blocks_of_logits() -> None:
    found, rows = run_step("cpu", 512, profile=False)
    block = 4 * CPU_BLOCK_ROWS * VOCABULARY
    assert rows == 511 and found.largest <= block
    assert found.peak <= 2 * block < 4 * 512 * VOCABULARY


def test_counting_notices_logits_that_are_held_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk_pooler, "BLOCK_BYTES", 2**40)
    assert run_step("meta", 2_048, profile=False)[0].peak > POOLER_WORK * BLOCK_BYTES


def test_plan_reckons_with_the_poolers_own_block() -> None:
    assert POOLER_BLOCK_BYTES == BLOCK_BYTES
