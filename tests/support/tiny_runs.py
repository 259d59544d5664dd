"""A run over the tiny models, and what several test files need around one: threads, a further process."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


def tiny_run(output: Path, models: dict[str, Path], dialogues: dict[str, Path]) -> dict:
    """A whole run over the tiny models, as plain values."""
    return {
        "run": {"output": str(output)},
        "pivot": {"name": "llama", "model": str(models["llama"])},
        "sources": [{"name": "mixtral", "model": str(models["mixtral"])}],
        "dialogues": {"train": [str(dialogues["train"])], "held_out": [str(dialogues["held_out"])], "max_tokens": 256},
        "extraction": {"k": 5, "shard_tokens": 512, "self_check_dialogues": 2},
        "training": {"trl": {"num_train_epochs": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
                             "learning_rate": 1e-3, "save_steps": 2}},
        "evaluation": {"exact": {"kinds": ["arithmetic"], "max_new_tokens": 8}, "questions": {"samples": ["Say hello."]}},
        "cluster": {"engines": 1},
    }  # fmt: skip


@contextlib.contextmanager
def torch_threads(number: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
