"""The dense fusion loss against hand-made numbers and the released trainer's figures."""

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer import fused_linear_fusion_loss, fusion_loss

RELEASED = json.loads(
    gzip.decompress((Path(__file__).parents[1] / "data" / "released_fusion_loss.json.gz").read_bytes())
)


def released_rows(case: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels, ids and logprobs of the rows that supervise a case, chosen as the released collator does."""
    shape = (len(case["features"]), case["padded_length"], case["vocab_size"])
    student = np.random.default_rng(1000 + case["seed"]).normal(0, 2, shape).astype("float32")
    logits, labels, ids, rows = [], [], [], []
    for i, feature in enumerate(case["features"]):
        source_wins = math.exp(-feature["fused_metric_ce"]) > math.exp(-feature["metric_ce"])
        for j, label in enumerate(feature["labels"][1:]):
            if label == -100:
                continue
            prefix = "fused_" if source_wins and feature["fused_per_step_logits"][j] else ""
            row = feature[f"{prefix}per_step_logits"][j]
            padding = 10 - len(row)
            logits.append(student[i, j])
            labels.append(label)
            ids.append(feature[f"{prefix}per_step_indices"][j] + [0] * padding)
            rows.append(torch.log_softmax(torch.tensor(row), 0).tolist() + [-math.inf] * padding)
    return torch.tensor(np.stack(logits)), torch.tensor(labels), torch.tensor(ids), torch.tensor(rows)


@pytest.mark.parametrize("case", RELEASED, ids=lambda case: f"{case['kind']}-{case['temperature']}-{case['seed']}")
def test_fusion_loss_equals_released_trainer(case: dict) -> None:
    logits, labels, ids, rows = released_rows(case)
    loss = fusion_loss(logits, labels, ids, rows, case["sft_weight"], case["kind"], temperature=case["temperature"])
    assert float(loss) == pytest.approx(case["loss_fp32_targets"], abs=1e-4)
    assert float(loss) == pytest.approx(case["loss_bf16_targets"], rel=2**-8)


def test_fusion_loss_of_two_outcomes_equals_hand_computation() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1]]))
    ids, rows = torch.tensor([[1, 0]]), torch.log(torch.tensor([[0.6, 0.2]]))
    label = torch.tensor([0])
    sft, p = -math.log(0.7), (0.75, 0.25)
    ce = -p[0] * math.log(0.2) - p[1] * math.log(0.7)
    entropy = -sum(x * math.log(x) for x in p)
    q = (0.2 / 0.9, 0.7 / 0.9)
    reverse = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    bucket = -0.6 * math.log(0.2) - 0.2 * math.log(0.7) - 0.2 * math.log(0.1)
    for options, fusion in (
        ({"divergence": "ce"}, ce),
        ({"divergence": "kl"}, ce - entropy),
        ({"divergence": "reverse_kl"}, reverse),
        ({"divergence": "ce", "tail": "bucket"}, bucket),
    ):
        assert float(fusion_loss(logits, label, ids, rows, 0.9, **options)) == pytest.approx(0.9 * sft + 0.1 * fusion)


def test_fusion_loss_temperature_sharpens_the_row() -> None:
    logits, label = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([2])
    ids, rows = torch.tensor([[0, 1]]), torch.log(torch.tensor([[0.8, 0.2]]))
    log_q = torch.log_softmax(logits[0], 0)
    sharp = 0.64 / 0.68
    expected = -sharp * log_q[0] - (1 - sharp) * log_q[1]
    loss = fusion_loss(logits, label, ids, rows, sft_weight=0.0, temperature=0.5)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_fusion_loss_without_row_is_sft_and_ignored_labels_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 9, generator=generator)
    labels = torch.tensor([3, -100, 5, 0])
    ids = torch.full((4, 2), 65_535)
    rows = torch.full((4, 2), -math.inf)
    expected = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100)
    assert torch.allclose(fusion_loss(logits, labels, ids, rows, 0.3, "reverse_kl", tail="bucket"), expected)


def test_fusion_loss_without_any_label_is_zero() -> None:
    loss = fusion_loss(
        torch.randn(2, 5), torch.full((2,), -100), torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 1)
    )
    assert float(loss) == 0.0


@pytest.mark.parametrize(
    "options", [{"sft_weight": 1.5}, {"divergence": "js"}, {"temperature": 0.0}, {"tail": "drop"}], ids=str
)
def test_fusion_loss_refuses_unknown_options(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        fusion_loss(torch.zeros(1, 3), torch.zeros(1).long(), torch.zeros(1, 1).long(), torch.zeros(1, 1), **options)


def test_fusion_loss_refuses_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="expected"):
        fusion_loss(torch.zeros(2, 3), torch.zeros(2).long(), torch.zeros(1, 1).long(), torch.zeros(1, 1))


def test_fusion_loss_weighs_every_row_by_its_own_weight_and_leaves_a_token_without_row_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(3, 9, generator=generator), torch.tensor([3, 5, 0])
    rows, ids = torch.log_softmax(torch.randn(3, 9, generator=generator), 1).topk(4)
    rows[2] = -math.inf
    parts = [
        float(fusion_loss(logits[[t]], labels[[t]], ids[[t]], rows[[t]], 1 - w)) for t, w in enumerate((0.2, 0.9, 0))
    ]
    loss = fusion_loss(logits, labels, ids, rows, row_weights=torch.tensor([0.2, 0.9, 0.5]))
    assert float(loss) == pytest.approx(sum(parts) / 3, rel=1e-6)


@pytest.mark.parametrize("function", [fusion_loss, fused_linear_fusion_loss])
def test_fusion_loss_refuses_weights_that_are_not_one_per_label(function: Callable) -> None:
    """The fused loss is given hidden states of width 3 and the unit matrix as its head."""
    head = (torch.eye(3),) if function is fused_linear_fusion_loss else ()
    arguments = (torch.zeros(2, 3), *head, torch.zeros(2).long(), torch.zeros(2, 1).long(), torch.zeros(2, 1))
    for name in ("row_weights", "label_weights"):
        with pytest.raises(ValueError, match=name):
            function(*arguments, **{name: torch.ones(3)})
