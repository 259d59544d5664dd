"""`fusechat run`: the stages in order, each skipped if its artifact is finished.

Stages are imported when they begin, so that the command line stays light and a missing optional package only stops
the stage that needs it.
"""

import importlib
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from .artifact import RECORD_FILE, Artifact, read_json, run_lock, write_json
from .config import CONTROL, RunConfig
from .errors import ConfigError
from .logs import Progress, append_json_line, format_seconds
from .process_memory import without_garbage_collection


@dataclass(frozen=True)
class Step:
    """One unit that leaves artifacts."""

    stage: str
    name: str
    outputs: tuple[str, ...]
    """Folders or URLs of its artifacts."""
    make: Callable[[RunConfig, Progress], Any]
    check: Callable[[RunConfig], None] = lambda config: None
    """Raises a UserError for what can be known to be wrong before anything runs."""

    @property
    def label(self) -> str:
        return f"{self.stage} {self.name}".rstrip()

    def records(self) -> list[Any]:
        """The record of each output, None where it is not finished (of whatever plan: the stage itself compares)."""
        return [read_json(f"{output}/{RECORD_FILE}") for output in self.outputs]


def steps(config: RunConfig) -> list[Step]:
    """All steps of a run, in order."""
    names = [model.name for model in config.models]
    sources = [source.name for source in config.sources]
    targets = config.target_names + ([CONTROL] if config.training.train_control else [])
    found = [Step("tokenize", "dialogues", (str(config.dialogues_path),), _prepare_dialogues)]
    for name in names:
        splits = (config.tokens_url(name), config.tokens_url(name, "held_out"))
        found.append(Step("tokenize", name, splits, partial(_tokenize, name)))
    urls = tuple(config.logprobs_url(name) for name in names)
    found.append(Step("extract", "", urls, _stage_call("cluster.extraction", names)))
    for name in sources:
        found.append(Step("align", name, (config.aligned_url(name),), _stage_call("cluster.alignment", name)))
    if config.training.row_choice == "trusted":
        found.append(Step("train", "choice", (config.choice_url,), _stage_call("trainer.choice_stage")))
    folders = tuple(str(config.target_path(name)) for name in targets)
    found.append(Step("train", "", folders, _stage_call("cluster.training", targets)))
    found.append(Step("merge", "", (str(config.fused_path),), _merge, _check("merge.stage", "check")))
    answers = _answer_folders(config)
    if answers:
        asked = _check("evaluation.ahead", "check_questions")
        found.append(Step("answer", "", answers, _stage_call("cluster.answering"), asked))
    measured = _check("evaluation.ahead", "check")
    found.append(Step("evaluate", "", (str(config.report_path),), _stage_call("evaluation.stage"), measured))
    return found


STAGES = ("tokenize", "extract", "align", "train", "merge", "answer", "evaluate")


def check(config: RunConfig, only: str | None = None) -> None:
    """Refuse, before any hour of a GPU is spent, what a later stage would refuse; of what is finished nothing is asked.

    Raises:
        UserError: a merge method, a file of questions, a judge's key or a task of the harness that is not there.
    """
    for step in steps(config):
        wanted = only in (None, step.stage)
        if wanted and (config.run.if_changed == "restart" or not all(step.records())):
            step.check(config)


def run(config: RunConfig, *, progress: Progress, only: str | None = None) -> dict[str, float]:
    """Run all stages, or one.

    Args:
        only: a name of STAGES; the stages before it must be finished.
    Returns:
        step label -> seconds it took here (0 where it was skipped).
    Raises:
        BusyError: another process works on this run folder.
        ConfigError: the run has no such stage.
        UserError: as `check`, before any stage begins.
    """
    if only is not None and only not in [step.stage for step in steps(config)]:
        raise ConfigError(f"this run has nothing to {only}: name sets of questions in evaluation.answers")
    check(config, only)
    seconds: dict[str, float] = {}
    with run_lock(config.run.output):
        write_json(str(config.run.output / "run.json"), config.dump())
        for step in steps(config):
            if only is not None and step.stage != only:
                continue
            started, before = time.monotonic(), step.records()
            live = _module("evaluation.live")
            # Evaluation writes the finished report itself.
            watched = live.watched(config, step.label, say=progress.say) if step.stage != "evaluate" else nullcontext()
            with watched:
                step.make(config, progress)
            skipped = all(before) and step.records() == before
            seconds[step.label] = 0.0 if skipped else time.monotonic() - started
            _say_done(step, progress, seconds[step.label], config)
            if not skipped:
                live.try_write(config, f"{step.label} done", say=progress.say)
    return seconds


def _say_done(step: Step, progress: Progress, seconds: float, config: RunConfig) -> None:
    if seconds == 0.0:
        progress.say(f"{step.label}: done before, skipped")
        return
    progress.say(f"{step.label}: done in {format_seconds(seconds)}")
    append_json_line(config.log_path("run"), {"step": step.label, "seconds": round(seconds, 3)})


def _answer_folders(config: RunConfig) -> tuple[str, ...]:
    sets = [answer_set.name for answer_set in config.evaluation.answers]
    return tuple(str(config.answers_path(name, model_id)) for name in sets for model_id in config.measured_ids)


def _module(name: str) -> Any:
    with without_garbage_collection():
        return importlib.import_module(name)


def _check(module: str, name: str) -> Callable[[RunConfig], None]:
    return lambda config: getattr(_module(module), name)(config)


def _prepare_dialogues(config: RunConfig, progress: Progress) -> Artifact:
    return _module("fusechat.tokenize_stage").prepare_dialogues(config, progress=progress)


def _tokenize(name: str, config: RunConfig, progress: Progress) -> list[Artifact]:
    return _module("fusechat.tokenize_stage").tokenize(config, name, progress=progress)


def _merge(config: RunConfig, progress: Progress) -> Artifact:
    # A local Ray has no cores and no disks but those that a merge in this process uses already.
    module = "cluster.merging" if config.cluster.ray_address else "merge.stage"
    return _module(module).run(config, progress=progress)


def _stage_call(module: str, *arguments: str | list[str]) -> Callable[[RunConfig, Progress], Any]:
    def call(config: RunConfig, progress: Progress) -> Any:
        return _module(module).run(config, *arguments, progress=progress)

    return call
