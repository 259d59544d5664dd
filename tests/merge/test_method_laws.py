"""What every merge method keeps: copies, order, scale, dtypes, the size of blocks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_models import base_and_targets as models
from torch import Tensor

from merge import merge_tensors
from merge.methods import METHODS

DETERMINISTIC = ["sce", "varm", "linear", "task_arithmetic", "ties"]


@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from(DETERMINISTIC))
@settings(max_examples=40, deadline=None)
def test_merging_copies_of_one_model_returns_it(seed: int, count: int, method: str) -> None:
    base, targets = models((6, 5), count=1, seed=seed)
    parameters = {"density": 1.0} if method == "ties" else {}
    merged = merge_tensors(method, base, targets * count, **parameters)
    torch.testing.assert_close(merged, targets[0], atol=5e-8, rtol=0)


@given(st.integers(0, 10_000), st.permutations(range(3)), st.sampled_from([*DETERMINISTIC, "dare_ties", "dare_linear"]))
@settings(max_examples=40, deadline=None)
def test_permuting_targets_with_their_weights_changes_nothing(seed: int, order: list[int], method: str) -> None:
    base, targets = models((6, 5), seed=seed)
    weights = [0.2, 0.5, 0.6]

    def merged(places: list[int]) -> Tensor:
        named = {f"target{place}": targets[place] for place in places}
        parameters = {} if method in ("sce", "varm") else {"weights": [weights[place] for place in places]}
        return merge_tensors(method, base, named, **parameters)

    torch.testing.assert_close(merged([0, 1, 2]), merged(order), atol=5e-8, rtol=0)


@given(st.integers(0, 10_000), st.integers(-60, 60), st.sampled_from([*DETERMINISTIC, "slerp", "dare_ties"]))
@settings(max_examples=60, deadline=None)
def test_scaling_all_weights_scales_the_merge(seed: int, exponent: int, method: str) -> None:
    """By a power of two exactly: no guard, threshold or epsilon depends on the scale of the updates."""
    base, targets = models((6, 5), seed=seed, count=2)
    factor = 2.0**exponent
    merged = merge_tensors(method, base, targets)
    scaled = merge_tensors(method, base * factor, [target * factor for target in targets])
    assert torch.equal(scaled, merged * factor)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_method_takes_every_floating_dtype_and_gives_the_base_dtype(method: str, dtype: torch.dtype) -> None:
    base, targets = models((8, 8), count=2)
    merged = merge_tensors(method, base.to(dtype), [targets[0].to(dtype), targets[1]])
    assert merged.dtype == dtype and merged.shape == base.shape
    assert (merged.float() - base).abs().max() < 0.05


@pytest.mark.parametrize("method", sorted(METHODS))
def test_unchanged_targets_leave_the_base(method: str) -> None:
    base, _ = models((8, 8))
    torch.testing.assert_close(merge_tensors(method, base, [base, base]), base, atol=2e-8, rtol=0)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"dare_linear", "dare_ties"}))
def test_result_does_not_depend_on_the_size_of_blocks(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, targets = models((31, 17), count=2)
    whole = merge_tensors(method, base, targets)
    monkeypatch.setattr("merge.group.BLOCK", 64)
    torch.testing.assert_close(merge_tensors(method, base, targets), whole, atol=4e-9, rtol=0)


def test_empty_tensor_is_returned() -> None:
    assert merge_tensors("sce", torch.empty(0, 3), [torch.empty(0, 3)]).shape == (0, 3)
