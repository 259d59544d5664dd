"""Top-k, log-sum-exp and label of logits, against a full sort in float64: the loops of CPUs and the kernel of GPUs."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from inference.capture.rows import TopKRows, unpack_rows
from inference.capture.topk import merge_chosen, merge_ranks, reduce_block, reduce_chosen


def reference_rows(logits: torch.Tensor, labels: torch.Tensor, k: int) -> TopKRows:
    """Sort every row whole: descending value, then ascending id."""
    values = logits.double().numpy()
    logsumexp = np.log(np.exp(values - values.max(axis=1, keepdims=True)).sum(axis=1)) + values.max(axis=1)
    order = np.stack([np.lexsort((np.arange(len(row)), -row))[:k] for row in values])
    logprobs = np.take_along_axis(values, order, axis=1) - logsumexp[:, None]
    label = values[np.arange(len(values)), labels.numpy()] - logsumexp
    return TopKRows(order, logprobs, label, logsumexp)


def assert_rows_equal(found: TopKRows, expected: TopKRows) -> None:
    np.testing.assert_array_equal(found.topk_ids, expected.topk_ids)
    for name in ("topk_logprobs", "label_logprob", "logsumexp"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=3e-6, rtol=3e-6)


def score(logits: torch.Tensor, labels: torch.Tensor, k: int, *, cuts: tuple[int, ...] = ()) -> TopKRows:
    """As the pooler does it: each rank reduces its own columns, the results are gathered and merged."""
    edges = [0, *cuts, logits.shape[1]]
    ranks = [reduce_block(logits[:, low:high], labels, k, first_id=low) for low, high in itertools.pairwise(edges)]
    return unpack_rows(merge_ranks(torch.stack(ranks, dim=1)).numpy())


pytestmark = pytest.mark.usefixtures("two_threads")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton decides when it is imported: its interpreter runs kernels on CPU tensors."""


@pytest.fixture(autouse=True)
def kernel_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process with the interpreter, all tests here are of the GPU's way of reducing."""
    if INTERPRETED:
        from inference.capture import topk_gpu

        monkeypatch.setattr("inference.capture.topk_cpu.reduce_rows", topk_gpu.reduce_rows)


@pytest.mark.skipif(INTERPRETED, reason="is the process that the test starts")
def test_kernel_of_gpus_passes_the_same_tests_when_interpreted() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("columns", "k"), [(5, 3), (7, 7), (97, 10), (4_099, 1), (4_096, 10), (5_003, 64), (50_001, 10)]
)
def test_reduce_block_equals_a_full_sort(columns: int, k: int, dtype: torch.dtype) -> None:
    torch.manual_seed(columns)
    logits = (torch.randn(9, columns) * 5).to(dtype)
    labels = torch.randint(0, columns, (9,))
    assert_rows_equal(score(logits, labels, k), reference_rows(logits, labels, k))


@pytest.mark.parametrize("columns", [64, 3_001])
def test_reduce_block_equal_logits_keeps_the_smallest_ids(columns: int) -> None:
    torch.manual_seed(0)
    logits = torch.randint(-2, 3, (20, columns)).float()  # five values: every k-th place is a tie
    logits[0] = 0.0
    logits[1] = torch.where(torch.arange(columns) % 2 == 0, -0.0, 0.0)  # one value, two bit patterns
    labels = torch.randint(0, columns, (20,))
    found = score(logits, labels, 10)
    assert_rows_equal(found, reference_rows(logits, labels, 10))
    assert found.topk_ids[:2].tolist() == [list(range(10))] * 2


@pytest.mark.parametrize("cuts", [(500,), (100, 101, 900), (3, 6)])
def test_merge_ranks_of_a_split_vocabulary_equals_the_whole(cuts: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    logits = (torch.randn(11, 1_000) * 4).round()  # ties within and between ranks
    labels = torch.randint(0, 1_000, (11,))
    assert_rows_equal(score(logits, labels, 8, cuts=cuts), reference_rows(logits, labels, 8))


def test_merge_ranks_ids_above_2_to_24_stay_exact() -> None:
    logits = torch.zeros(1, 4)
    logits[0, 3] = 9.0
    found = unpack_rows(
        merge_ranks(reduce_block(logits, torch.tensor([2**24 + 1]), 1, first_id=2**24 + 1)[:, None]).numpy()
    )
    assert found.topk_ids.tolist() == [[2**24 + 4]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cuts", [(), (500,), (3, 6)])
def test_chosen_ids_and_the_rest_of_a_split_vocabulary_equal_the_whole(
    cuts: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(2)
    logits = (torch.randn(11, 1_000) * 4).to(dtype)
    ids = torch.randint(0, 1_000, (11, 6))
    ids[:, 1] = ids[:, 0]  # an id twice counts once
    ids[3:, 4:] = -1
    before = logits.clone()
    edges = [0, *cuts, 1_000]
    ranks = [reduce_chosen(logits[:, low:high], ids, first_id=low) for low, high in itertools.pairwise(edges)]
    found = merge_chosen(torch.stack(ranks, dim=1), logits.float().logsumexp(1, keepdim=True)).double().numpy()
    assert torch.equal(logits, before)
    logprobs = logits.double().log_softmax(1).numpy()
    for row, of_one in enumerate(ids.tolist()):
        expected = [logprobs[row, token] if token >= 0 else -np.inf for token in of_one]
        np.testing.assert_allclose(found[row, 1:], expected, atol=3e-6, rtol=3e-6)
        others = np.delete(logprobs[row], [token for token in of_one if token >= 0])
        np.testing.assert_allclose(found[row, 0], np.log(np.exp(others).sum()), atol=3e-6, rtol=3e-6)


def test_chosen_ids_that_are_the_whole_vocabulary_leave_no_rest() -> None:
    found = reduce_chosen(torch.randn(2, 5), torch.arange(5).expand(2, 5))
    assert torch.isneginf(found[:, 0]).all() and torch.isfinite(found[:, 1:]).all()


def test_reduce_block_certain_token_gives_no_logprob_above_zero() -> None:
    logits = torch.full((1, 2_000), -1e4)
    logits[0, 7] = 1e4
    found = score(logits, torch.tensor([7]), 2)
    assert found.topk_logprobs[0, 0] == 0.0 and found.label_logprob[0] == 0.0


def test_reduce_block_nan_is_passed_on() -> None:
    logits = torch.zeros(2, 3_000)
    logits[1, 5] = torch.nan
    found = score(logits, torch.tensor([1, 1]), 4)
    assert not np.isnan(found.topk_logprobs[0]).any() and np.isnan(found.topk_logprobs[1]).all()
