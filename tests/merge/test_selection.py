"""The exact k-th largest over blocks, and the compiled loops it and the methods stand on, against numpy and torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merge.compute import kernels
from merge.compute.selection import Selection, largest
from merge.files.tensors import MemoryTensor, first_not_finite, narrow, widen
from merge.group import Block, TensorGroup, normalised


def group_of(*rows: np.ndarray) -> TensorGroup:
    """A group over a base of zeros, so that the rows are the deltas."""
    sources = [MemoryTensor(torch.from_numpy(row)) for row in (np.zeros_like(rows[0]), *rows)]
    return TensorGroup("t", sources[0], list(sources[1:]), [str(j) for j in range(len(rows))])


def select(group: TensorGroup, k: int) -> list[Selection]:
    def stable(values: np.ndarray, count: int) -> np.ndarray:
        return np.argsort(-values, kind="stable")[:count]

    return largest(
        group, lambda block: block.deltas, [lambda present: min(present, k)] * len(group.targets), order=stable
    )


def kept(group: TensorGroup, selection: Selection, number: int = 0) -> np.ndarray:
    """bool [all elements]: what the selection keeps."""

    def keep(block: Block) -> np.ndarray:
        row = np.ones(block.stop - block.start, np.float32)
        selection.keep(row, block.deltas[number], block)
        return row

    return np.concatenate(group.map(keep)).astype(bool)


@given(st.integers(1, 300), st.integers(0, 400), st.integers(0, 10_000), st.sampled_from([16, 1000]))
@settings(max_examples=60, deadline=None)
def test_largest_finds_what_sorting_finds(size: int, k: int, seed: int, block: int) -> None:
    generator = np.random.default_rng(seed)
    row = generator.standard_normal(size).astype(np.float32) * (generator.random(size) > 0.3).astype(np.float32)
    group = group_of(row)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("merge.group.BLOCK", block)
        (selection,) = select(group, k)
        chosen = kept(group, selection)
    wanted = min(k, np.count_nonzero(row))
    assert chosen.sum() == wanted
    assert set(np.abs(row[chosen])) == set(np.sort(np.abs(row))[size - wanted :])


def test_largest_of_several_rows_are_independent() -> None:
    rows = np.arange(1, 101, dtype=np.float32), -np.arange(100, 0, -1, dtype=np.float32)
    first, second = select(group_of(*rows), 7)
    assert (first.threshold, second.threshold) == (94.0, 94.0)
    assert kept(group_of(*rows), first, 0)[93:].all()
    assert kept(group_of(*rows), second, 1)[:7].all()


def test_largest_with_ties_in_one_block_asks_the_given_order() -> None:
    group = group_of(np.array([1, 2, 2, 2, 3], np.float32))
    (selection,) = select(group, 3)
    assert selection.tie_share == pytest.approx(2 / 3)
    assert kept(group, selection).tolist() == [False, True, True, False, True]


def test_largest_with_ties_over_blocks_keeps_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merge.group.BLOCK", 100)
    row = np.ones(10_000, np.float32)
    row[::10] = 2
    group = group_of(row)
    (selection,) = select(group, 4000)
    chosen = kept(group, selection)
    assert chosen[::10].all()
    assert chosen.sum() == pytest.approx(4000, abs=20)


def test_largest_none_keeps_nothing() -> None:
    group = group_of(np.ones(5, np.float32))
    (selection,) = select(group, 0)
    assert not kept(group, selection).any()


def test_variance_equals_torch_bit_for_bit_and_is_zero_for_equal_targets() -> None:
    deltas = torch.randn(5, 3000, generator=torch.Generator().manual_seed(0)) * 1e-3
    deltas[:, :100] = deltas[0, :100]
    out = np.empty(3000, np.float32)
    rows = torch.cat([torch.zeros(1, 3000), deltas])
    kernels.variance(rows.numpy().view(np.uint32), out)
    assert np.array_equal(out, torch.var(deltas, dim=0, unbiased=False).numpy())
    assert (out[:100] == 0).all() and (out[100:] > 0).all()


@pytest.mark.parametrize(
    ("dtype", "torch_dtype"), [("BF16", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32)]
)
def test_narrow_and_widen_equal_torch(dtype: str, torch_dtype: torch.dtype) -> None:
    bits = torch.randint(0, 2**31 - 1, (50_000,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    values = torch.cat([bits.view(torch.float32), torch.tensor([0.0, -0.0, 1.00390625, 1.01171875, 1e-40, -1e-45])])
    values = values[values.isfinite() & (values.abs() < 3e38)]
    expected = values.to(torch_dtype)
    raw = np.empty(values.numel() * expected.element_size(), np.uint8)
    narrow(values.numpy(), dtype, raw)
    assert np.array_equal(raw, expected.view(torch.uint8).numpy())
    back = np.empty(values.numel(), np.float32)
    widen(raw, dtype, back)
    assert np.array_equal(back, expected.float().numpy())


@pytest.mark.parametrize(
    ("dtype", "torch_dtype"),
    [("BF16", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32), ("F64", torch.float64)],
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_first_not_finite_finds_the_place(dtype: str, torch_dtype: torch.dtype, bad: float) -> None:
    values = torch.full((1000,), torch.finfo(torch_dtype).max, dtype=torch_dtype)
    values[::2] *= -1
    assert first_not_finite(values.view(torch.uint8).numpy(), dtype) is None
    values[[700, 900]] = bad
    assert first_not_finite(values.view(torch.uint8).numpy(), dtype) == 700


def test_low_rank_product_equals_numpy() -> None:
    generator = np.random.default_rng(0)
    up, down = (
        generator.standard_normal((9, 3)).astype(np.float32),
        generator.standard_normal((3, 5)).astype(np.float32),
    )
    out = np.ones((4, 5), np.float32)
    kernels.add_low_rank(up, down, np.float32(0.5), 2, out)
    np.testing.assert_allclose(out, 1 + 0.5 * up[2:6] @ down, rtol=1e-5)


def test_normalised_has_no_scale() -> None:
    for scale in (1.0, 1e-30, 1e-200):
        np.testing.assert_allclose(normalised(np.array([1.0, 3.0]) * scale), [0.25, 0.75])
    np.testing.assert_array_equal(normalised(np.zeros(4)), np.full(4, 0.25))
