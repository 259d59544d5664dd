"""Teachers whose weights are quantised, as large sources are: their rows against a plain forward over the same numbers."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_cases import K, make_dialogues
from quantised_models import save_quantised

from inference.capture.rows import concatenate_rows
from inference.engine.engine import Engine
from inference.self_check import TOLERANCES, compare_rows, reference_logprobs

ENGINE: dict[str, Any] = {"max_num_batched_tokens": 64, "kv_cache_gib": 0.05}
GPU_ENGINE: dict[str, Any] = {
    "max_num_batched_tokens": 64, "gpu_memory_utilization": 0.2, "extra": {"enforce_eager": True},
}  # fmt: skip
ON_GPU = torch.cuda.is_available()


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
@pytest.mark.parametrize("method", ["fp8", "awq"])
def test_gpu_quantised_teacher_gives_the_rows_of_its_numbers(method: str, tmp_path: Path) -> None:
    assert_rows_of_its_numbers(method, tmp_path, GPU_ENGINE)


@pytest.mark.skipif(ON_GPU, reason="for vLLM's CPU build, which takes FP8 only with AMX")
def test_awq_teacher_gives_the_rows_of_its_numbers(tmp_path: Path) -> None:
    assert_rows_of_its_numbers("awq", tmp_path, ENGINE)


def assert_rows_of_its_numbers(method: str, folder: Path, engine: dict[str, Any]) -> None:
    """Within what bfloat16 costs; a model of other numbers is much further away, so a wrong nibble would show."""
    quantised, plain = save_quantised(folder / "same", method)
    _, other = save_quantised(folder / "other", method, seed=1)
    with Engine(str(quantised), k=K, max_tokens=300, section=engine) as opened:
        ids, marks = make_dialogues(opened.vocab_size)
        rows = concatenate_rows(opened.score(ids, marks), K)
        assert opened.info["dtype"] == "bfloat16"
    pairs = list(zip(ids, marks, strict=True))
    mean, largest = compare_rows(rows, *reference_logprobs(plain, "float32", pairs, rows.topk_ids))
    bound = TOLERANCES["bfloat16"]
    assert mean <= bound.mean and largest <= bound.each, (mean, largest)
    away, _ = compare_rows(rows, *reference_logprobs(other, "float32", pairs, rows.topk_ids))
    assert away > 5 * bound.mean, (away, mean)
    assert np.isfinite(dataclasses.astuple(rows)[1]).all()
