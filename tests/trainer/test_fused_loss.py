"""The fused loss beside the dense reference: value, gradients, dtypes, and what it never holds."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainer import fused_linear_fusion_loss, fusion_loss, head_product
from trainer.fused_loss import fused_linear_fusion_sums
from trainer.head_product import HeadTransform
from trainer.losses import LossOptions

OPTIONS = [
    {"divergence": divergence, "tail": tail, "temperature": temperature}
    for divergence, tail, temperature in itertools.product(
        ("ce", "kl", "reverse_kl"), ("renormalise", "bucket"), (1.0, 0.5)
    )
]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head_product.CHUNK_BYTES, "cpu", 4 * 61 * 5)  # five tokens
    monkeypatch.setattr(head_product, "BLOCK_BYTES", 4 * 61 * 10)
    monkeypatch.setattr(head_product, "VOCABULARY_TILE", 16)


def problem(dtype: torch.dtype = torch.float32, tokens: int = 17) -> dict[str, Tensor]:
    """Tokens of every sort: ignored, without row, short row, row of one entry, label inside the row, a near-certain row."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(tokens, 12, generator=generator, dtype=dtype)
    weight = torch.randn(61, 12, generator=generator, dtype=dtype)
    labels = torch.randint(0, 61, (tokens,), generator=generator)
    rows, ids = torch.log_softmax(2 * torch.randn(tokens, 61, generator=generator, dtype=dtype), 1).topk(6)
    rows[9] = torch.log_softmax(torch.tensor([30.0, 1, 0.5, 0, 0, 0], dtype=dtype), 0)
    for token, kept in ((3, 0), (4, 3), (5, 1)):
        rows[token, kept:] = -torch.inf
        ids[token, kept:] = 65_535
    labels[[2, 7]] = -100
    ids[8, 0] = labels[8]
    bias = torch.randn(61, generator=generator, dtype=dtype)
    return {"hidden": hidden, "weight": weight, "bias": bias, "labels": labels, "ids": ids, "rows": rows}


def dense(p: dict[str, Tensor], head: HeadTransform, **options: object) -> Tensor:
    logits = (p["hidden"] @ p["weight"].t() + p["bias"]) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return fusion_loss(logits, p["labels"], p["ids"], p["rows"], **options)  # type: ignore[arg-type]


def fused(p: dict[str, Tensor], head: HeadTransform, **options: object) -> Tensor:
    arguments = (p["hidden"], p["weight"], p["labels"], p["ids"], p["rows"])
    return fused_linear_fusion_loss(*arguments, bias=p["bias"], head=head, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("head", [HeadTransform(), HeadTransform(0.7, 3.0)], ids=["plain", "softcap"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_fused_loss_equals_dense_reference(options: dict, head: HeadTransform) -> None:
    p = problem()
    leaves = [p[name].requires_grad_() for name in ("hidden", "weight", "bias")]
    reference, loss = dense(p, head, **options), fused(p, head, **options)
    assert torch.allclose(loss, reference, rtol=0, atol=1e-5)
    for left, right in zip(
        torch.autograd.grad(loss * 3, leaves), torch.autograd.grad(reference * 3, leaves), strict=True
    ):
        assert torch.allclose(left, right, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_fused_loss_gradient_equals_finite_differences(options: dict) -> None:
    p = problem(torch.float64)
    leaves = [p[name].requires_grad_() for name in ("hidden", "weight", "bias")]

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fused({**p, "hidden": hidden, "weight": weight, "bias": bias}, HeadTransform(1.3, 4.0), **options)

    assert torch.autograd.gradcheck(loss, leaves, eps=1e-6, atol=1e-6, rtol=1e-4, fast_mode=True)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_fused_loss_weighs_every_row_as_the_dense_reference_does(options: dict) -> None:
    p = problem()
    leaves = [p[name].requires_grad_() for name in ("hidden", "weight", "bias")]
    weights = torch.linspace(0, 1, 17)
    reference = dense(p, HeadTransform(), row_weights=weights, **options)
    mine = fused(p, HeadTransform(), row_weights=weights, **options)
    assert torch.allclose(mine, reference, rtol=0, atol=1e-5)
    for left, right in zip(torch.autograd.grad(mine, leaves), torch.autograd.grad(reference, leaves), strict=True):
        assert torch.allclose(left, right, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_fused_loss_weighs_every_label_as_the_dense_reference_does(options: dict) -> None:
    p = problem()
    leaves = [p[name].requires_grad_() for name in ("hidden", "weight", "bias")]
    rows, labels = torch.linspace(0, 1, 17), torch.tensor([0.0, 1.0, 0.4] * 6)[:17]
    reference = dense(p, HeadTransform(), row_weights=rows, label_weights=labels, **options)
    mine = fused(p, HeadTransform(), row_weights=rows, label_weights=labels, **options)
    assert torch.allclose(mine, reference, rtol=0, atol=1e-5)
    for left, right in zip(torch.autograd.grad(mine, leaves), torch.autograd.grad(reference, leaves), strict=True):
        assert torch.allclose(left, right, rtol=0, atol=1e-5)


def test_label_of_weight_0_teaches_nothing_and_a_token_without_row_then_neither() -> None:
    p, zero, one = problem(), torch.zeros(17), torch.ones(17)
    p["hidden"].requires_grad_()
    loss = fused(p, HeadTransform(), row_weights=one, label_weights=zero, tail="bucket")
    (gradient,) = torch.autograd.grad(loss, p["hidden"])
    assert gradient[3].abs().max() == 0  # has no row
    p["labels"] = torch.where(p["labels"] >= 0, (p["labels"] + 7) % 61, p["labels"])
    other = fused(p, HeadTransform(), row_weights=one, label_weights=zero, tail="bucket")
    assert torch.equal(torch.autograd.grad(other, p["hidden"])[0], gradient)


def test_fused_loss_of_equal_row_weights_is_the_loss_of_that_sft_weight() -> None:
    p = problem()
    p["weight"].requires_grad_()
    losses = [fused(p, HeadTransform(), sft_weight=0.3), fused(p, HeadTransform(), row_weights=torch.full((17,), 0.7))]
    assert losses[0].item() == losses[1].item()
    assert torch.equal(*[torch.autograd.grad(loss, p["weight"])[0] for loss in losses])


@pytest.mark.parametrize("in_hardware", [False, True])
def test_fused_loss_of_bfloat16_model_accumulates_in_float32(
    in_hardware: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_product, "cpu_has_bfloat16_products", lambda: in_hardware)
    p = problem()
    half = {name: value.bfloat16() if name in ("hidden", "weight", "bias") else value for name, value in p.items()}
    exact = {name: value.float() if name in ("hidden", "weight", "bias") else value for name, value in half.items()}
    for inputs in (half, exact):
        inputs["weight"].requires_grad_()
    loss, reference = fused(half, HeadTransform()), dense(exact, HeadTransform())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference.item(), rel=2e-3)
    gradient = torch.autograd.grad(loss, half["weight"])[0]
    assert gradient.dtype == torch.bfloat16
    expected = torch.autograd.grad(reference, exact["weight"])[0]
    assert torch.allclose(gradient.float(), expected, rtol=2**-7, atol=2e-3)


def test_fused_loss_adds_the_blocks_of_a_bfloat16_gradient_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block's product is rounded once: 200 blocks lose no more than one. Sums in bfloat16 would be over 1 % off."""
    monkeypatch.setattr(head_product, "cpu_has_bfloat16_products", lambda: True)
    p = problem(tokens=4000)
    gradients = []
    for block_tokens in (20, 4000):
        monkeypatch.setattr(head_product, "BLOCK_BYTES", 2 * 61 * block_tokens)
        weight = p["weight"].clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            gradients.append(torch.autograd.grad(fused({**p, "weight": weight}, HeadTransform()), weight)[0])
    assert gradients[0].dtype == torch.float32
    assert 0 < (gradients[0] - gradients[1]).norm() < 0.004 * gradients[1].norm()


def test_fused_loss_under_autocast_keeps_float32_gradients() -> None:
    p = problem()
    p["weight"].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused(p, HeadTransform())
    gradient = torch.autograd.grad(loss, p["weight"])[0]
    assert gradient.dtype == torch.float32
    assert loss.item() == pytest.approx(dense(p, HeadTransform()).item(), rel=2e-2)


def test_fused_loss_of_tied_embedding_adds_both_gradients() -> None:
    p = problem()
    weight, inputs = p["weight"].requires_grad_(), torch.arange(17)
    loss = fused({**p, "hidden": weight[inputs]}, HeadTransform())
    reference = dense({**p, "hidden": weight[inputs]}, HeadTransform())
    left, right = torch.autograd.grad(loss, weight)[0], torch.autograd.grad(reference, weight)[0]
    assert torch.allclose(left, right, atol=1e-5)


def test_fused_loss_without_tokens_is_a_differentiable_zero() -> None:
    p = problem()
    p["labels"][:] = -100
    p["hidden"].requires_grad_()
    loss = fused(p, HeadTransform())
    assert loss.item() == 0.0
    assert torch.equal(torch.autograd.grad(loss, p["hidden"])[0], torch.zeros(17, 12))


def test_fused_sums_scale_is_the_same_as_scaling_the_loss() -> None:
    p = problem()
    kept = p["labels"] != -100
    weight = p["weight"].requires_grad_()
    arguments = (p["hidden"][kept], weight, p["labels"][kept], p["ids"][kept], p["rows"][kept], LossOptions())
    inside, outside = fused_linear_fusion_sums(*arguments, scale=0.25), fused_linear_fusion_sums(*arguments)
    assert torch.allclose(inside.loss, outside.loss * 0.25)
    left, right = torch.autograd.grad(inside.loss, weight)[0], torch.autograd.grad(outside.loss * 0.25, weight)[0]
    assert torch.allclose(left, right)


def test_fused_sums_parts_add_up_to_the_loss() -> None:
    p = problem()
    kept = (p["labels"] != -100) & torch.isfinite(p["rows"]).any(1)
    arguments = (p["hidden"][kept], p["weight"], p["labels"][kept], p["ids"][kept], p["rows"][kept])
    sums = fused_linear_fusion_sums(*arguments, LossOptions(sft_weight=0.6))
    assert torch.allclose(sums.loss, 0.6 * sums.sft + 0.4 * sums.fusion)
    best = (arguments[0] @ p["weight"].t()).argmax(1)
    assert int(sums.correct) == int((best == arguments[2]).sum())
    assert int(sums.rows) == int(kept.sum())
    row = torch.softmax(arguments[4], 1)
    assert torch.allclose(sums.row_entropy, -(row * row.clamp_min(1e-30).log()).sum(), atol=1e-4)


def test_label_that_shares_the_first_place_is_half_right() -> None:
    hidden = torch.tensor([[1.0], [1.0], [-1.0]])
    weight = torch.tensor(
        [[2.0], [2.0], [1.0]]
    )  # ids 0 and 1 tie for the first place where the hidden state is positive
    ids, rows = torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 1)
    sums = fused_linear_fusion_sums(hidden, weight, torch.tensor([1, 2, 2]), ids, rows, LossOptions())
    assert float(sums.correct) == 0.5 + 0 + 1


class _LargestTensor(TorchDispatchMode):
    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


def test_fused_loss_never_holds_all_logits() -> None:
    p = problem(tokens=400)
    p["weight"].requires_grad_()
    with _LargestTensor() as watch:
        torch.autograd.grad(fused(p, HeadTransform()), p["weight"])
    assert watch.largest < 400 * 61 / 4
    with _LargestTensor() as watch:
        torch.autograd.grad(dense(p, HeadTransform()), p["weight"])
    assert watch.largest >= 390 * 61


def test_losses_of_single_labels_are_those_of_cross_entropy() -> None:
    p = problem()
    kept = p["labels"] != -100
    hidden, labels, ids, rows = (p[name][kept] for name in ("hidden", "labels", "ids", "rows"))
    sums = fused_linear_fusion_sums(hidden, p["weight"], labels, ids, rows, LossOptions(), bias=p["bias"])
    expected = torch.nn.functional.cross_entropy(hidden @ p["weight"].t() + p["bias"], labels, reduction="none")
    torch.testing.assert_close(sums.label_losses, expected)
    assert not sums.label_losses.requires_grad
