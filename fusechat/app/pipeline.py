"""`fusechat run`: the stages in order, each skipped if its artifact is finished.

Stages are imported when they begin, so that the command line stays light and a missing optional package only stops
the stage that needs it.
"""

import time
from contextlib import nullcontext
from functools import partial
from typing import Any

from ..config import RunConfig
from ..config.artifacts import artifact_entries
from ..config.round_run import ROUND_STAGES, round_runs
from ..errors import ConfigError
from ..progress import Progress, append_json_line, format_seconds
from ..storage.artifact import Artifact
from ..storage.files import write_json
from ..storage.run_lock import run_lock
from .step import Check, Make, Step, check_nothing


def steps(config: RunConfig) -> list[Step]:
    """All steps of a run, in order."""
    names = [model.name for model in config.models]
    entries = artifact_entries(config)

    def step(stage: str, name: str, make: Make, check: Check = check_nothing) -> Step:
        made_here = tuple(entry for entry in entries if (entry.stage, entry.step) == (stage, name))
        return Step(stage, name, made_here, make, check)

    street = [step("write", "", _write, _check_writing)] if config.dialogues.prompts else []
    street.append(step("tokenize", "dialogues", _prepare_dialogues))
    street += [step("tokenize", name, partial(_tokenize, name)) for name in names]
    street.append(step("extract", "", partial(_extract, names)))
    street += [step("align", source.name, partial(_align, source.name)) for source in config.sources]
    if config.training.row_choice == "trusted":
        street.append(step("train", "choice", _choose))
    street.append(step("train", "", partial(_train, config.trained_names)))
    street.append(step("merge", "", _merge, _check_merge))
    for number, one in enumerate(round_runs(config), 1):
        street.append(
            step("rounds", f"{number} ask", partial(_ask, one), _check_prompts if number == 1 else check_nothing)
        )
        street += [
            step("rounds", f"{number} {inner.label}", partial(_in_round, one, inner.make))
            for inner in steps(one)
            if inner.stage in ROUND_STAGES
        ]
    street.append(step("answer", "", _answer, _check_answers))
    street.append(step("evaluate", "", _evaluate, _check_evaluation))
    return street


STAGES = ("write", "tokenize", "extract", "align", "train", "merge", "rounds", "answer", "evaluate")


def check(config: RunConfig, only: str | None = None) -> None:
    """Refuse, before any hour of a GPU is spent, what a later stage would refuse; of what is finished nothing is asked.

    Raises:
        UserError: a merge method, a file of questions, a judge's key or a task of the harness that is not there.
    """
    _ = config.cluster.ray_address  # refuses one that no stage could connect to
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
        UserError: as `check`, before any stage begins.
    """
    if only is not None and only not in [step.stage for step in steps(config)]:
        lacking = {
            "write": "nothing to write: name files of prompts in dialogues.prompts",
            "rounds": "no rounds: set rounds.count",
        }
        raise ConfigError(f"this run has {lacking[only]}")
    check(config, only)
    from cluster.kept_ray import keep_ray
    from evaluation.inputs import ReportInputs
    from evaluation.report import live

    shown = ReportInputs.of(config)
    seconds: dict[str, float] = {}
    with run_lock(config.run.output), keep_ray():
        write_json(str(config.run.output / "run.json"), config.dump())
        for step in steps(config):
            if only is not None and step.stage != only:
                continue
            started, before = time.monotonic(), step.records()
            # Evaluation writes the finished report itself.
            watched = live.watched(shown, step.label, say=progress.say) if step.stage != "evaluate" else nullcontext()
            with watched:
                step.make(config, progress)
            skipped = all(before) and step.records() == before
            seconds[step.label] = 0.0 if skipped else time.monotonic() - started
            _say_done(step, progress, seconds[step.label], config)
            if not skipped:
                live.try_write(shown, f"{step.label} done", say=progress.say)
    return seconds


def _say_done(step: Step, progress: Progress, seconds: float, config: RunConfig) -> None:
    if seconds == 0.0:
        progress.say(f"{step.label}: done before, skipped")
        return
    progress.say(f"{step.label}: done in {format_seconds(seconds)}")
    append_json_line(config.log_path("run"), {"step": step.label, "seconds": round(seconds, 3)})


# Stages are imported where they are called: a stage that is skipped costs nothing, and one whose optional package is
# missing stops only itself.


def _check_writing(config: RunConfig) -> None:
    from cluster import writing

    writing.check(config)


def _write(config: RunConfig, progress: Progress) -> Artifact:
    from cluster import writing

    return writing.run(config, progress=progress)


def _prepare_dialogues(config: RunConfig, progress: Progress) -> Artifact:
    from cluster import tokenizing

    return tokenizing.read_dialogues(config, progress=progress)


def _tokenize(name: str, config: RunConfig, progress: Progress) -> list[Artifact]:
    from cluster import tokenizing

    return tokenizing.tokenize(config, name, progress=progress)


def _extract(names: list[str], config: RunConfig, progress: Progress) -> dict[str, Artifact]:
    from cluster import extraction

    return extraction.run(config, names, progress=progress)


def _align(source: str, config: RunConfig, progress: Progress) -> Artifact:
    from cluster import alignment

    return alignment.run(config, source, progress=progress)


def _choose(config: RunConfig, progress: Progress) -> Artifact:
    from trainer import choice_stage

    names = [source.name for source in config.sources]
    is_round = config.rounds.number > 0
    return choice_stage.run(config.layout, config.pivot.name, names, is_round=is_round, progress=progress)


def _train(targets: list[str], config: RunConfig, progress: Progress) -> dict[str, Artifact]:
    from cluster import training

    return training.run(config, targets, progress=progress)


def _check_merge(config: RunConfig) -> None:
    from merge import stage

    stage.recipe(config.merge, config.merged_names, seed=config.run.seed)


def _merge(config: RunConfig, progress: Progress) -> Artifact:
    from cluster import merging

    return merging.run(config, progress=progress)


def _check_prompts(config: RunConfig) -> None:
    from ..text.prompts import read_prompts

    if files := config.rounds.prompts or config.dialogues.prompts:
        read_prompts(files, on_bad=config.dialogues.on_bad)


def _ask(one: RunConfig, config: RunConfig, progress: Progress) -> Artifact:
    from trainer import asking

    write_json(str(one.run.output / "run.json"), one.dump())
    return asking.ask(config.layout, one.layout, asking.Asking.of(config, one), progress=progress)


def _in_round(one: RunConfig, make: Make, config: RunConfig, progress: Progress) -> Any:
    """A stage of a round: the round is a run of its own."""
    return make(one, progress)


def _check_answers(config: RunConfig) -> None:
    from inference.answering import stage
    from inference.harness import stage as harness

    stage.check(config.evaluation)
    harness.check(config.evaluation.lm_eval)


def _answer(config: RunConfig, progress: Progress) -> list[Artifact]:
    from cluster import answering

    return answering.run(config, progress=progress)


def _check_evaluation(config: RunConfig) -> None:
    from evaluation.judge.judge_connection import judge_key

    if config.evaluation.judge is not None:
        judge_key(config.evaluation.judge)


def _evaluate(config: RunConfig, progress: Progress) -> Artifact:
    from evaluation import stage
    from evaluation.inputs import ReportInputs

    return stage.run(ReportInputs.of(config), progress=progress)
