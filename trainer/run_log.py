"""What a training run shows and keeps: one progress bar, and metrics.jsonl in the target's folder."""

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from fusechat.progress import Progress, Task, append_json_line, read_json_lines
from fusechat.storage.write_errors import storage_errors

METRICS_FILE = "metrics.jsonl"


class RunLog(TrainerCallback):
    """Shows the steps and keeps every logged record; a resumed run goes on where its checkpoint stood.

    `seconds` of a record count from the start of training in this process.
    """

    def __init__(self, progress: Progress, label: str, folder: Path) -> None:
        self._progress, self._label, self._metrics = progress, label, folder / METRICS_FILE
        self._stack, self._task, self._note = ExitStack(), None, ""

    _task: Task | None
    _began: float

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self._began = time.monotonic()
            _forget_later_steps(self._metrics, state.global_step)
            steps = self._progress.task(self._label, state.max_steps, "steps", done=state.global_step)
            self._task = self._stack.enter_context(steps)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            self._note = f"loss {logs['loss']:.4f}"
            seconds = round(time.monotonic() - self._began, 3)
            record = {"step": state.global_step, "steps": state.max_steps, "seconds": seconds, **logs}
            append_json_line(self._metrics, record)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            # The finished target follows at once; a checkpoint of the same weights would only cost time.
            control.should_save = False
        if self._task is not None:
            self._task.advance(1, note=self._note)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._stack.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a target's metrics.jsonl, in order of steps; empty where there is none."""
    return read_json_lines(folder / METRICS_FILE)


def _forget_later_steps(path: Path, step: int) -> None:
    """Drop what a killed run logged after the checkpoint that is gone back to."""
    records = [record for record in read_metrics(path.parent) if record["step"] <= step]
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def describe_parts(sums: dict[str, float]) -> dict[str, float]:
    """Sums over tokens, rows and dialogues -> what is logged."""
    tokens, rows = max(sums["tokens"], 1), max(sums["rows"], 1)
    return {
        "sft_loss": sums["sft"] / tokens,
        "fusion_loss": sums["fusion"] / rows,
        "row_entropy": sums["row_entropy"] / rows,
        "source_share": sums["won"] / tokens,
        "row_share": sums["rows"] / tokens,
        "row_weight": sums["weights"] / rows,
        "token_accuracy": sums["correct"] / tokens,
        "target_tokens": sums["tokens"],
        "dialogues_without_source": sums["without_source"],
    }
