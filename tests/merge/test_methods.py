"""Each merge method beside a slow obvious reference on whole tensors, and the released SCE's figures."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from merge_models import base_and_targets as models
from torch import Tensor

import merge.methods
from fusechat.errors import ConfigError, ContractError
from merge import merge_tensors
from merge.group import BLOCK, TensorGroup
from merge.methods import METHODS, Method

RELEASED = Path(__file__).parents[1] / "data" / "released_sce.npz"
SEVERAL_BLOCKS = (3, BLOCK // 2 + 77)


def deltas_of(base: Tensor, targets: list[Tensor]) -> Tensor:
    return torch.stack([target - base for target in targets]).double()


def reference_elected(base: Tensor, deltas: Tensor, votes: Tensor, weights: Tensor, normalize: bool = True) -> Tensor:
    """In float64, on whole tensors."""
    votes, weights = (value.reshape(-1, *[1] * base.dim()) for value in (votes, weights))
    sign = torch.where((votes * deltas).sum(0) >= 0, 1.0, -1.0)
    agreeing = torch.sign(votes * deltas) == sign
    total, divisor = (weights * deltas * agreeing).sum(0), (weights * agreeing).sum(0)
    divisor[divisor == 0] = 1
    return base.double() + (total / divisor if normalize else total)


def reference_sce(base: Tensor, targets: list[Tensor], select_topk: float, variant: str) -> Tensor:
    deltas = deltas_of(base, targets)
    variance = deltas.var(dim=0, unbiased=False)
    selected = torch.ones_like(variance, dtype=torch.bool)
    if select_topk < 1:
        k = int(np.float32(torch.count_nonzero(variance)) * np.float32(select_topk))
        selected = torch.zeros_like(selected).flatten()
        selected[variance.flatten().sort(descending=True, stable=True).indices[:k]] = True
        selected = selected.reshape(variance.shape)
    squares = (deltas.square() * selected).flatten(1).mean(1)
    uniform = squares.sum() == 0 or (variant == "mergekit" and squares.sum() < 1e-6)
    weights = torch.full_like(squares, 1 / len(targets)) if uniform else squares / squares.sum()
    if variant == "mergekit":
        deltas = deltas * selected
    return reference_elected(base, deltas, torch.ones(len(targets)).double(), weights)


@pytest.mark.parametrize("name", ["matrix", "vector"])
@pytest.mark.parametrize("select_topk", [1.0, 0.1, 0.01])
def test_sce_released_equals_the_released_figures(name: str, select_topk: float) -> None:
    with np.load(RELEASED) as facts:
        base, targets = (torch.from_numpy(facts[f"{name}.{part}"]) for part in ("base", "targets"))
        expected = facts.get(f"{name}.merged.select_topk={select_topk}")
        coefficients = facts[f"{name}.coefficients.select_topk={select_topk}"]
    if expected is not None:
        merged = merge_tensors("sce", base, targets, select_topk=select_topk)
        assert merged.dtype == torch.float32
        np.testing.assert_allclose(merged.numpy(), expected, atol=1e-6, rtol=0)
    group = TensorGroup("t", MemorySource(base), [MemorySource(t) for t in targets], list("abcde"))
    given = METHODS["sce"](group, select_topk=select_topk).coefficients
    np.testing.assert_allclose(given, coefficients, atol=1e-6, rtol=0)


class MemorySource:
    """A tensor source of the test's own."""

    def __init__(self, tensor: Tensor) -> None:
        self._flat, self.shape = tensor.flatten().numpy(), tuple(tensor.shape)

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        out[:] = self._flat[start:stop]

    def read_ahead(self) -> None: ...


@pytest.mark.parametrize("variant", ["released", "mergekit"])
@pytest.mark.parametrize("select_topk", [1.0, 0.3, 0.02, 0.0])
@pytest.mark.parametrize("shape", [(40, 13), (7,)])
def test_sce_equals_the_reference(variant: str, select_topk: float, shape: tuple[int, ...]) -> None:
    base, targets = models(shape)
    merged = merge_tensors("sce", base, targets, select_topk=select_topk, variant=variant)
    torch.testing.assert_close(merged.double(), reference_sce(base, targets, select_topk, variant), atol=1e-7, rtol=0)


@pytest.mark.parametrize("variant", ["released", "mergekit"])
def test_sce_over_several_blocks_equals_the_reference(variant: str) -> None:
    base, targets = models(SEVERAL_BLOCKS, unchanged=0.5)
    merged = merge_tensors("sce", base, targets, select_topk=0.1, variant=variant)
    torch.testing.assert_close(merged.double(), reference_sce(base, targets, 0.1, variant), atol=1e-7, rtol=0)


def test_sce_mergekit_gives_equal_shares_to_small_updates_and_released_does_not() -> None:
    base = torch.zeros(100)
    targets = [torch.full((100,), 1e-4), torch.full((100,), 3e-4)]
    released, mergekit = (
        merge_tensors("sce", base, targets, select_topk=1.0, variant=variant)[0].item()
        for variant in ("released", "mergekit")
    )
    assert released == pytest.approx(2.8e-4, rel=1e-5)  # 0.1 * 1e-4 + 0.9 * 3e-4
    assert mergekit == pytest.approx(2e-4, rel=1e-5)


def test_varm_weighs_by_mean_squared_update() -> None:
    base, targets = models((30, 20))
    squares = deltas_of(base, targets).square().flatten(1).mean(1)
    expected = base.double() + torch.einsum("j,jab->ab", squares / squares.sum(), deltas_of(base, targets))
    for granularity in ("matrix", "layer", "model"):  # a single tensor is its own layer and model
        merged = merge_tensors("varm", base, targets, granularity=granularity)
        torch.testing.assert_close(merged.double(), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize(("normalize", "divisor"), [(True, 1.3), (False, 1.0)])
def test_linear_is_the_weighted_mean(normalize: bool, divisor: float) -> None:
    base, targets = models((9, 11))
    weights = [0.2, 0.5, 0.6]
    expected = sum(w * t.double() for w, t in zip(weights, targets, strict=True)) / divisor
    merged = merge_tensors("linear", base, targets, weights=weights, normalize=normalize)
    torch.testing.assert_close(merged.double(), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize(("normalize", "factor"), [(True, 0.5 / 0.9), (False, 0.5)])
def test_task_arithmetic_adds_scaled_updates(normalize: bool, factor: float) -> None:
    base, targets = models((9, 11))
    weights = torch.tensor([0.1, -0.2, 1.0]).double()
    expected = base.double() + factor * torch.einsum("j,jab->ab", weights, deltas_of(base, targets))
    merged = merge_tensors("task_arithmetic", base, targets, weights=weights.tolist(), normalize=normalize, scale=0.5)
    torch.testing.assert_close(merged.double(), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("density", [1.0, 0.5, 0.05])
@pytest.mark.parametrize("normalize", [True, False])
def test_ties_trims_elects_and_merges(density: float, normalize: bool) -> None:
    base, targets = models((25, 16), unchanged=0.0)
    deltas, weights = deltas_of(base, targets), torch.tensor([0.2, 0.5, 0.6]).double()
    k = max(1, int(density * base.numel()))
    for delta in deltas:
        smallest_kept = delta.abs().flatten().topk(k).values[-1]
        delta[delta.abs() < smallest_kept] = 0
    expected = reference_elected(base, deltas, weights, weights, normalize)
    merged = merge_tensors("ties", base, targets, density=density, weights=weights.tolist(), normalize=normalize)
    torch.testing.assert_close(merged.double(), expected, atol=1e-7, rtol=0)


def test_ties_over_several_blocks_keeps_the_largest_of_the_whole_tensor() -> None:
    base, targets = models(SEVERAL_BLOCKS, count=2)
    merged = merge_tensors("ties", base, targets[:1], density=0.1)
    update = targets[0] - base
    kept = merged != base
    assert kept.sum().item() == pytest.approx(0.1 * base.numel(), rel=1e-3)
    assert update[kept].abs().min() >= update[~kept].abs().max()


def test_ties_spreads_the_places_of_equal_updates_over_the_tensor() -> None:
    size = 4 * BLOCK
    merged = merge_tensors("ties", torch.zeros(size), [torch.ones(size)], density=0.25)
    kept = merged.reshape(16, -1).bool().float().mean(1)
    torch.testing.assert_close(kept, torch.full((16,), 0.25), atol=0.01, rtol=0)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_expectation_is_the_merge_without_dropping(method: str) -> None:
    base = torch.zeros(4 * BLOCK)
    targets = [torch.full_like(base, 1e-3), torch.full_like(base, 3e-3)]
    weights = {"weights": [0.25, 0.5]}
    merged = merge_tensors(method, base, targets, density=0.25, normalize=False, **weights)
    assert merged.mean().item() == pytest.approx(0.25 * 1e-3 + 0.5 * 3e-3, rel=0.02)
    assert merged.unique().numel() == 4  # none, the first, the second or both survive
    assert (merged == 0).float().mean().item() == pytest.approx(0.75**2, abs=0.01)


def test_dare_draws_depend_on_seed_tensor_and_target_alone() -> None:
    base, targets = models((300, 300), count=2)

    def merged(seed: int = 0, tensor_name: str = "a", names: str = "xy") -> Tensor:
        named = dict(zip(names, targets, strict=True))
        return merge_tensors("dare_linear", base, named, seed=seed, tensor_name=tensor_name)

    assert torch.equal(merged(), merged())
    others = [merged(seed=1), merged(tensor_name="b"), merged(names="xz")]
    assert not any(torch.equal(merged(), other) for other in others)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_follows_the_great_circle(t: float) -> None:
    u, v = torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(1)).double()
    angle = torch.arccos((u * v).sum() / u.norm() / v.norm())
    expected = (torch.sin((1 - t) * angle) * u + torch.sin(t * angle) * v) / torch.sin(angle)
    for base, targets in ((u, [v]), (torch.zeros_like(u), [u, v])):
        torch.testing.assert_close(merge_tensors("slerp", base, targets, t=t), expected, atol=1e-6, rtol=0)


def test_slerp_of_parallel_tensors_is_the_line_between_them() -> None:
    u = torch.arange(1.0, 9.0)
    torch.testing.assert_close(merge_tensors("slerp", u, [3 * u], t=0.25), 1.5 * u)


def test_slerp_of_three_targets_is_refused() -> None:
    base, targets = models((4, 4))
    with pytest.raises(ConfigError, match="found 3 targets"):
        merge_tensors("slerp", base, targets)


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("sces", {}, "did you mean 'sce'"),
        ("sce", {"select_top_k": 0.1}, "sce has no such parameter; did you mean 'select_topk'"),
        ("sce", {"select_topk": 1.5}, "select_topk: sce: found 1.5: Input should be less than or equal to 1"),
        ("sce", {"variant": "paper"}, "found 'paper': Input should be 'released' or 'mergekit'"),
        ("sce", {"select_topk": float("nan")}, "finite"),
        ("ties", {"density": [0.5]}, "density: found 1 numbers, expected one for each of 3 targets"),
        ("ties", {"density": 0.0}, "expected shares above 0 and at most 1"),
        ("ties", {"weights": {"x": 1.0}}, "weights: found names"),
        ("linear", {"weights": [1.0, -1.0, 0.0]}, "add up to 0"),
        ("dare_ties", {"density": 0}, "greater than 0"),
        ("slerp", {"t": 2}, "less than or equal to 1"),
        ("varm", {"granularity": "module"}, "'matrix', 'layer' or 'model'"),
        ("linear", {"normalize": "yes"}, "valid boolean"),
    ],
)
def test_wrong_parameters_are_named(method: str, parameters: dict, message: str) -> None:
    base, targets = models((4, 4))
    with pytest.raises(ConfigError, match=message):
        merge_tensors(method, base, targets, **parameters)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([], "found none"),
        ([torch.zeros(2, 3)], r"target 0: found shape \[2, 3\], expected the base's \[3, 2\]"),
        ({"x": torch.zeros(3, 2, dtype=torch.int32)}, "target x: found dtype torch.int32"),
        ([torch.full((3, 2), float("nan"))], "holds NaN or infinity"),
    ],
)
def test_tensors_that_do_not_fit_are_named(targets: list[Tensor] | dict[str, Tensor], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        merge_tensors("sce", torch.zeros(3, 2), targets)


EXTENDING = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture
def median(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Method:
    """The method that docs/extending.md shows, put where it says."""
    code = EXTENDING.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    (tmp_path / "median.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(merge.methods, "__path__", [*merge.methods.__path__, str(tmp_path)])
    method: Method = importlib.import_module("merge.methods.median").median
    monkeypatch.setitem(METHODS, "median", method)
    monkeypatch.delitem(sys.modules, "merge.methods.median")
    return method


def test_method_of_the_docs_merges_once_it_is_listed(median: Method) -> None:
    base, targets = models(SEVERAL_BLOCKS)
    expected = base + 0.5 * torch.stack(targets).sub(base).median(dim=0).values
    torch.testing.assert_close(merge_tensors("median", base, targets, scale=0.5), expected)
    assert torch.equal(
        merge_tensors(median, base, targets, scale=0.5), merge_tensors("median", base, targets, scale=0.5)
    )
    with pytest.raises(ConfigError, match="median has no such parameter; did you mean 'scale'"):
        merge_tensors("median", base, targets, scales=1.0)
    with pytest.raises(ConfigError, match=r"merge.parameters.scale: median: found 'much'"):
        merge_tensors("median", base, targets, scale="much")


def test_methods_are_those_of_the_design() -> None:
    published = "sce varm linear task_arithmetic ties dare_ties dare_linear slerp"
    assert set(METHODS) == set(published.split())
    for name, method in METHODS.items():
        assert method.__doc__ and "Args:" in method.__doc__, name
