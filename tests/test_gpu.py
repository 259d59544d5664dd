"""What runs on an accelerator, held against the same on the CPU: the loss, both captures, a target, the whole chain.

Skipped where there is none: `pytest -m gpu` on a machine that has one.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import tiny_architectures
import torch
import trainer_runs
import yaml
from engine_cases import MAX_TOKENS, K, assert_rows_match, forward, make_dialogues
from stages_here import train
from tiny_runs import tiny_run
from trainer_runs import losses, weights

from fusechat.app import pipeline
from fusechat.config import load_config
from fusechat.progress import Progress
from inference.engine.engine import Engine
from trainer import fused_linear_fusion_loss, fusion_loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
ENGINE = {"gpu_memory_utilization": 0.2, "max_num_batched_tokens": 64, "extra": {"enforce_eager": True}}
TF32 = 0.02
"""Nats: vLLM's attention multiplies float32 in TensorFloat32, with ten bits."""


def loss_problem(vocab_size: int = 5003, tokens: int = 700, width: int = 128, k: int = 10) -> dict[str, torch.Tensor]:
    """On the GPU, float32; a tenth of the tokens without a row, some without a label."""
    generator = torch.Generator().manual_seed(0)
    rows, ids = torch.log_softmax(2 * torch.randn(tokens, vocab_size, generator=generator), 1).topk(k)
    labels = torch.randint(0, vocab_size, (tokens,), generator=generator)
    rows[::10], labels[::7] = -math.inf, -100
    problem = {
        "hidden": torch.randn(tokens, width, generator=generator),
        "weight": torch.randn(vocab_size, width, generator=generator) / 4,
        "labels": labels, "ids": ids, "rows": rows,
    }  # fmt: skip
    return {name: value.cuda() for name, value in problem.items()}


@pytest.mark.parametrize("divergence", ["ce", "kl", "reverse_kl"])
def test_gpu_fused_loss_equals_dense_reference_in_float64(divergence: str) -> None:
    p = loss_problem()
    leaves = [p[name].requires_grad_() for name in ("hidden", "weight")]
    arguments = (p["labels"], p["ids"], p["rows"])
    found = fused_linear_fusion_loss(*leaves, *arguments, divergence=divergence)  # type: ignore[arg-type]
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = fusion_loss(wide[0] @ wide[1].t(), p["labels"], p["ids"], p["rows"].double(), divergence=divergence)  # type: ignore[arg-type]
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    for one, other in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, wide), strict=True):
        assert torch.allclose(one.double(), other, rtol=0, atol=1e-5)


def test_gpu_fused_loss_under_autocast_keeps_the_gradient_of_the_weight_in_float32() -> None:
    p = loss_problem()
    leaves = [p[name].requires_grad_() for name in ("hidden", "weight")]
    arguments = (p["labels"], p["ids"], p["rows"])
    exact = torch.autograd.grad(fused_linear_fusion_loss(*leaves, *arguments), leaves)
    with torch.autocast("cuda", torch.bfloat16):
        found = torch.autograd.grad(fused_linear_fusion_loss(*leaves, *arguments), leaves)
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() / other.norm() < 0.01


@pytest.mark.parametrize("capture", ["topk_pooler", "prompt_logprobs"])
@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen3"])
def test_gpu_engine_rows_equal_a_plain_forward(name: str, capture: str, tmp_path: Path) -> None:
    folder = tiny_architectures.save_architecture(tmp_path / name, name)
    with Engine(str(folder), k=K, capture=capture, max_tokens=MAX_TOKENS, section=ENGINE) as engine:  # type: ignore[arg-type]
        assert engine.info["device"] == "cuda"
        ids, marks = make_dialogues(engine.vocab_size)
        rows = engine.score(ids, marks)
    assert_rows_match(rows, forward(folder, ids, marks), ids, marks, tolerance=TF32)


def test_gpu_engine_in_bfloat16_has_float32_logits(tmp_path: Path) -> None:
    """Distinct logits: rounded to bfloat16, the ten best of a row would tie."""
    folder = tiny_architectures.save_architecture(tmp_path / "llama", "llama")
    engine = {**ENGINE, "dtype": "bfloat16"}
    with Engine(str(folder), k=K, max_tokens=MAX_TOKENS, section=engine) as opened:
        ids, marks = make_dialogues(opened.vocab_size)
        rows = opened.score(ids, marks)
        assert (opened.info["dtype"], opened.info["head_dtype"]) == ("bfloat16", "float32")
    logits = np.concatenate([found.topk_logprobs + found.logsumexp[:, None] for found in rows])
    rounded = torch.from_numpy(logits).bfloat16().float().numpy()
    assert (np.abs(logits - rounded) > 0).mean() > 0.9


def test_gpu_target_is_trained_as_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = trainer_runs.make_run(tmp_path / "gpu")
    train(there, "other")
    here = trainer_runs.make_run(tmp_path / "cpu", trl={"use_cpu": True})
    train(here, "other")
    assert losses(there) == pytest.approx(losses(here), rel=1e-3)
    for name, value in weights(here).items():
        assert torch.allclose(weights(there)[name], value, atol=2e-4), name


@pytest.mark.parametrize("training_gpus", [1, 0.5], ids=["one_after_the_other", "side_by_side"])
def test_gpu_run_from_dialogues_to_fused_model(
    training_gpus: float, tmp_path: Path, tiny_models: dict[str, Path], dialogue_files: dict[str, Path]
) -> None:
    values = tiny_run(tmp_path / "out", tiny_models, dialogue_files)
    for section in (values["pivot"], values["sources"][0]):
        section["engine"] = {"gpu_memory_utilization": 0.2, "extra": {"enforce_eager": True}}
    values["cluster"] |= {"training_gpus": training_gpus}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    config = load_config(path)
    pipeline.run(config, progress=Progress(quiet=True))
    assert (config.fused_path / "model.safetensors").is_file()
