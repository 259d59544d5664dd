"""The arguments that an engine gets, on a CPU and on an accelerator. No engine is started."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_architectures
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.engine.arg_utils import EngineArgs

from fusechat.config import EngineSection
from inference.engine import engine_arguments as module
from inference.engine.engine_arguments import Runner, engine_arguments


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_architectures.save_architecture(tmp_path_factory.mktemp("model") / "granite", "granite")


def arguments_of(folder: Path, runner: Runner = "topk_pooler", k: int = 10, **extra: Any) -> EngineArgs:
    return engine_arguments(str(folder), EngineSection(extra=extra), runner, k=k, max_tokens=64)


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "current_platform", SimpleNamespace(is_cpu=lambda: False))


def test_scoring_on_an_accelerator_queues_two_steps_and_captures_no_graphs(folder: Path, accelerator: None) -> None:
    arguments = arguments_of(folder)
    assert arguments.async_scheduling is True
    assert arguments.compilation_config.cudagraph_mode == CUDAGraphMode.NONE
    assert not arguments.enforce_eager, "the model itself is compiled"


def test_scoring_on_an_accelerator_leaves_the_run_file_the_last_word(folder: Path, accelerator: None) -> None:
    chosen = {"async_scheduling": False, "compilation_config": {"cudagraph_mode": "PIECEWISE"}}
    arguments = arguments_of(folder, **chosen)
    assert arguments.async_scheduling is False
    assert arguments.compilation_config.cudagraph_mode == CUDAGraphMode.PIECEWISE


@pytest.mark.parametrize(("newer_executor", "queued"), [("1", True), ("0", None)])
def test_scoring_over_ray_queues_steps_where_its_executor_can(
    newer_executor: str, queued: bool | None, folder: Path, accelerator: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_USE_RAY_V2_EXECUTOR_BACKEND", newer_executor)
    assert arguments_of(folder, distributed_executor_backend="ray").async_scheduling is queued


@pytest.mark.parametrize("runner", ["prompt_logprobs", "generate"])
def test_engines_that_decode_keep_their_graphs_on_an_accelerator(
    runner: Runner, folder: Path, accelerator: None
) -> None:
    arguments = arguments_of(folder, runner)
    assert arguments.async_scheduling is None
    assert arguments.compilation_config.cudagraph_mode != CUDAGraphMode.NONE


def test_engine_on_a_cpu_runs_eagerly_one_step_at_a_time(folder: Path) -> None:
    arguments = arguments_of(folder)
    assert arguments.enforce_eager and arguments.async_scheduling is None


def test_compiled_artifacts_do_not_depend_on_k(folder: Path) -> None:
    """vLLM names what it compiles after the hash of its configuration; the pooler stands behind the compiled part."""
    hashes = [
        VllmConfig(additional_config=arguments_of(folder, k=k).additional_config).compute_hash() for k in (10, 64)
    ]
    assert hashes[0] == hashes[1]
    assert VllmConfig(additional_config={"other": 1}).compute_hash() != hashes[0]


def test_options_of_a_teacher_reach_ranks_in_other_processes(folder: Path) -> None:
    assert pickle.loads(pickle.dumps(arguments_of(folder, k=7).additional_config)).k == 7
