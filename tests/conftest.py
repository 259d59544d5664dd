"""Shared by all tests: tiny models built once, dialogues, and a run file over them."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import yaml

from fusechat.process_memory import without_garbage_collection

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Two processes run the tests, so the cores are taken. More threads would wait for each other, and OpenMP's spin meanwhile:
# a quarter of all the time. What runs in several threads is tested with so many.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A process per training job that no test needs.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")

# The same examples in every run; `pytest --hypothesis-profile=default` draws others.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")

LONGEST_FIRST = (
    "test_pipeline", "test_inference_faults", "test_cluster_training_job", "test_inference_teacher_engines",
    "test_cluster_faults", "test_cluster_submission", "test_cluster_alignment", "test_cluster_training",
    "test_inference_answers", "test_fusechat_ablation", "test_trainer_stage", "test_trainer_processes",
    "test_cluster_shard_pool", "test_evaluation_harness", "test_cluster_merging", "test_inference_topk",
    "test_examples_kuberay", "test_inference_target", "test_evaluation_browser",
)  # fmt: skip
"""Files of ten seconds and more: begun last, they would leave the second process idle."""


_collecting = contextlib.ExitStack()
_collecting.enter_context(without_garbage_collection())  # collecting the tests imports everything


def pytest_collection_finish() -> None:
    _collecting.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@contextlib.contextmanager
def torch_threads(number: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """For what is computed in several threads at once."""
    with torch_threads(2):
        yield


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name -> folder: `llama` (ChatML) and `mixtral` (plain template, another tokenizer)."""
    import tiny_models as build

    base = tmp_path_factory.mktemp("models")
    return {"llama": build.save_llama(base / "llama"), "mixtral": build.save_mixtral(base / "mixtral")}


@pytest.fixture(scope="session")
def dialogue_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Training and held-out dialogues in the own form: prose, digits, code, other scripts, several turns."""
    base = tmp_path_factory.mktemp("dialogues")
    files = {"train": base / "train.jsonl", "held_out": base / "held_out.jsonl"}
    for split, file in files.items():
        shift = 0 if split == "train" else 1000
        file.write_text(
            "".join(json.dumps(_dialogue(shift + i), ensure_ascii=False) + "\n" for i in range(14)), encoding="utf-8"
        )
    return files


def _dialogue(number: int) -> dict:
    ask, answer = [
        (f"How many apples are {number} + 4?", f"{number} + 4 = {number + 4}, so there are {number + 4} apples."),
        (f"What colour is sky {number}?", " Blue \U0001f600, 蓝色."),
        (f"Write add{number}.", f"```python\ndef add{number}(a, b):\n    return a + b\n```\n"),
        (f"Say hello, number {number}.", "Hello! How are you today?"),
    ][number % 4]
    messages = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
    if number % 5 == 0:
        messages += [
            {"role": "user", "content": "And the lazy dog?"},
            {"role": "assistant", "content": "It sleeps for 12 hours."},
        ]
    if number % 7 == 0:
        messages.insert(0, {"role": "system", "content": "Be brief."})
    return {"id": f"d{number}", "kind": ["arithmetic", "chat", "code", "chat"][number % 4], "messages": messages}


@contextlib.contextmanager
def another_process_within(context: str) -> Iterator[int]:
    """A process that stands in a `with` block over `context` (its imports included, as lines before it); gives its id.

    It is killed at the end.
    """
    *imports, expression = context.splitlines()
    code = "\n".join([*imports, f"with {expression}:", "    import time; print('held', flush=True); time.sleep(60)"])
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()


@pytest.fixture
def run_file(tmp_path: Path, tiny_models: dict[str, Path], dialogue_files: dict[str, Path]) -> Path:
    """A run file over the tiny models; its output is below the test's own folder."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_run(tmp_path / "out", tiny_models, dialogue_files)), encoding="utf-8")
    return path


def tiny_run(output: Path, models: dict[str, Path], dialogues: dict[str, Path]) -> dict:
    """A whole run over the tiny models, as plain values."""
    return {
        "run": {"output": str(output)},
        "pivot": {"name": "llama", "model": str(models["llama"])},
        "sources": [{"name": "mixtral", "model": str(models["mixtral"])}],
        "dialogues": {"train": [str(dialogues["train"])], "held_out": [str(dialogues["held_out"])], "max_tokens": 256},
        "extraction": {"k": 5, "shard_tokens": 512, "self_check_dialogues": 2, "replicas": 1},
        "training": {"trl": {"num_train_epochs": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
                             "learning_rate": 1e-3, "save_steps": 2}},
        "evaluation": {"exact_match_kinds": ["arithmetic"], "max_new_tokens": 8, "samples": ["Say hello."]},
    }  # fmt: skip
