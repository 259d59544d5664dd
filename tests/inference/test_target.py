"""A trained target opens in vLLM as it is, and says there what it says under transformers."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import trainer_runs
from engine_cases import assert_rows_match, forward, open_engine
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[2]


def test_target_of_a_bfloat16_pivot_opens_in_vllm(tmp_path: Path) -> None:
    config = trainer_runs.make_run(tmp_path, trl={"num_train_epochs": 1})
    AutoModelForCausalLM.from_pretrained(config.pivot.model, dtype="bfloat16").save_pretrained(config.pivot.model)
    # In a process of its own: vLLM trips over libraries that training imports.
    command = [sys.executable, "-m", "trainer", str(tmp_path / "run.yaml"), "other"]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    target = config.target_path("other")
    ids = [np.array([1, 50, 60, 70, 80, 90], np.int32)]
    marks = [np.array([False, False, True, True, True, True])]
    with open_engine(target, dtype="float32") as engine:
        assert_rows_match(engine.score(ids, marks), forward(target, ids, marks), ids, marks)
