"""Writing on Ray: engines answer the prompts, other models or a judge are asked where the rule needs them, the rule decides."""

import contextlib
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from evaluation.judge.judge_client import Request, ask_all
from evaluation.judge.judge_connection import judge_key
from evaluation.judge.judge_prompts import read_score, single_prompt
from fusechat.config import JudgeSection, ModelSection, RunConfig
from fusechat.config.layout import RunLayout
from fusechat.config.writing import WritingSection
from fusechat.errors import ConfigError, DialogueError
from fusechat.models.resolved_model import resolve
from fusechat.progress import Progress
from fusechat.storage.artifact import Artifact
from fusechat.storage.work import Work, run_here
from fusechat.text.model_templates import asked_template
from fusechat.text.prompt_stage import prepare_prompts
from fusechat.text.prompts import read_prompts
from inference.serving.faces import FaceName
from inference.writing import scoring, selection, stage
from inference.writing.decisions import Key, Known, find_rule
from inference.writing.stage import Writer

from .pool.preflight import check_cluster
from .pool.run_on_ray import run_on_ray
from .pool.session import ray_session
from .service.attach import do_works, sought_as

JUDGE_SECONDS = 10.0
"""Longest wait for a sign that the judge's endpoint is there."""


def check(config: RunConfig) -> None:
    """Refuse, before any engine starts, what writing would refuse.

    Raises:
        ConfigError: no such rule or parameter, nobody to score a writer's answers, no judge, or one that is not there.
        DialogueError: prompts that cannot be read, or no reference where the rule compares with them.
    """
    section = config.writing
    rule, _ = find_rule(section)
    prompts = read_prompts(config.dialogues.prompts, on_bad=config.dialogues.on_bad)
    if rule.needs == "references" and not any(prompt.reference for prompt in prompts):
        raise DialogueError(
            f"writing.keep: {section.keep} compares with references, and none of the {len(prompts):,} prompts has one; add "
            "'reference' to the rows, or choose another rule"
        )
    if rule.needs == "scores":
        scoring.check_scorers([one.name for one in config.writers], [one.name for one in config.scorers])
    if rule.needs == "judge":
        _check_judge(_judge_of(section, config.evaluation.judge))


def run(config: RunConfig, *, progress: Progress) -> Artifact:
    """Answer the prompts of a run, and decide what is kept.

    Returns:
        the artifact of the dialogues that are kept (`layout.written_path`).
    Raises:
        ConfigError: as `check`.
        ArtifactError: another recipe's work stands in a folder.
        DialogueError: as `check`, or nothing is kept.
        ClusterError: an engine could not start, or chunks were set aside. In all cases what was answered is kept.
    """
    layout, section = config.layout, config.writing
    date = str(prepare_prompts(layout, config.dialogues, progress=progress).counts["date"])
    seed = config.run.seed if section.seed is None else section.seed
    writers = _writers(config.writers, config.pivot, layout, date)
    rule, _ = find_rule(section)
    works = stage.prepare(layout, writers, section, config.cluster, seed=seed)
    with contextlib.ExitStack() as stack:
        if rule.needs == "scores" and any(work.missing for work in works):
            stack.enter_context(ray_session(config.cluster))  # one for the writers and the scorers
        made = _do(config, works, writers, "generate", progress)
        answers = {one.model.name: made[one.model.name] for one in writers}
        scorers = _writers(config.scorers, config.pivot, layout, date) if rule.needs == "scores" else []
        return _decide(config, answers, scorers, seed=seed, progress=progress)


def _decide(
    config: RunConfig, answers: dict[str, Artifact], scorers: list[Writer], *, seed: int, progress: Progress
) -> Artifact:
    """Ask scorers or a judge where the rule needs them, and let it decide.

    Args:
        answers: writer -> artifact of its answers.
        scorers: whom the rule asks; empty: it asks none.
    """
    layout, section, names = config.layout, config.writing, list(answers)
    rule, _ = find_rule(section)
    judge = _judge_of(section, config.evaluation.judge) if rule.needs == "judge" else None
    decided = selection.recipe(section, names, [one.model.section for one in scorers], judge, seed)
    claim = selection.claim(layout, decided, answers, {one.model.name: one.model.digests for one in scorers})
    if claim.artifact is not None:
        return claim.artifact
    known = Known.nothing()
    if scorers:
        known = Known(_scores(config, scorers, answers, progress), {})
    if judge is not None:
        known = Known({}, _judged(judge, layout, names, progress))
    made = selection.keep(claim, layout, names, section, known, seed=seed)
    counts = made.counts
    progress.say(
        f"write: {counts['dialogues']:,} of {counts['answers']:,} answers kept by {section.keep!r}; "
        f"{counts['prompts_without_answer']:,} of {counts['prompts']:,} prompts have none"
    )
    return made


def _writers(models: Sequence[ModelSection], pivot: ModelSection, layout: RunLayout, date: str) -> list[Writer]:
    """Models that answer or score; one that FuseChat trained is asked as its folder says."""
    known_pivot, *known = (resolve(model, layout.digests_path) for model in (pivot, *models))
    return [Writer(model, asked_template(model, known_pivot, date)) for model in known]


def _do(
    config: RunConfig, works: list[Work], writers: list[Writer], face: FaceName, progress: Progress
) -> dict[str, Artifact]:
    """What is left of works, one of each writer, by a running service that has its engine, else on Ray; artifacts by name."""
    asked = [
        sought_as(work, face, one.model, one.template.text, config.extraction)
        for one, work in zip(writers, works, strict=True)
    ]
    sections = {one.model.name: one.model.section for one in writers}
    verb = "write" if face == "generate" else "score answers"

    def do_own(left: list[Work]) -> list[Artifact]:
        begun = [work.name for work in left if work.missing]
        if not begun:
            return run_here(left, progress)
        with ray_session(config.cluster):
            models = [sections[work.name] for work in left]
            check_cluster(config, models, {"run.output": str(config.run.output / "writing")})
            progress.say(f"{verb}: starting {len(begun)} models on Ray: {', '.join(begun)}")
            return run_on_ray(
                left, config.cluster, progress=progress, workers_per_work=config.cluster.engines, label=verb
            )

    return do_works(config.cluster, asked, do_own, progress=progress)


def _scores(
    config: RunConfig, scorers: list[Writer], answers: dict[str, Artifact], progress: Progress
) -> dict[Key, dict[str, float]]:
    """Other models' logprobs of all whole answers, by answer and scorer."""
    layout, writers = config.layout, list(answers)
    placed = scoring.scored_layout(layout, [one.model.name for one in scorers])
    asked = [one for one in scorers if any(True for _ in scoring.candidates(layout, writers, one.model.name))]
    works = [
        work
        for one in asked
        for work in scoring.prepare(
            placed, writers, one, answers, config.extraction, config.cluster, progress=progress
        )
    ]  # fmt: skip
    _do(config, works, asked, "score", progress)
    return scoring.by_answer({one.model.name: scoring.logprobs_of(placed, writers, one.model.name) for one in asked})


def _judge_of(section: WritingSection, of_evaluation: JudgeSection | None) -> JudgeSection:
    judge = section.judge or of_evaluation
    if judge is None:
        raise ConfigError(
            f"writing.keep: {section.keep} asks a judge, and there is none; give its url and model in writing.judge"
        )
    return judge


def _check_judge(judge: JudgeSection) -> None:
    """Raises ConfigError where the judge's key is not set, or nobody answers at its address."""
    judge_key(judge)
    try:
        urllib.request.urlopen(f"{judge.url.rstrip('/')}/models", timeout=JUDGE_SECONDS).close()
    except urllib.error.HTTPError:
        return  # somebody answers; whether it takes the key and the model shows with the first verdict
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"writing.judge: {judge.url} does not answer ({error}); expected an OpenAI-compatible endpoint there: start it, or "
            "correct writing.judge.url"
        ) from None


def _judged(judge: JudgeSection, layout: RunLayout, writers: list[str], progress: Progress) -> dict[Key, float]:
    """The judge's mean score of each whole answer; answers without a readable verdict are left out."""
    keys: list[Key] = []
    requests: list[Request] = []
    for prompt, answers in selection.each_prompt(layout, writers):
        asked = [message.content for message in prompt.dialogue.messages if message.role == "user"][-1:]
        reference = [prompt.reference] if prompt.reference and not prompt.turns else []
        for answer in answers:
            if answer.fault:
                continue
            messages = single_prompt([*asked, *prompt.turns], [one.content for one in answer.messages], reference)
            plain = tuple((message["role"], message["content"]) for message in messages)
            keys += [(prompt.id, answer.writer, answer.sample)] * judge.repeats
            requests += [Request(plain, repeat) for repeat in range(judge.repeats)]
    cache = Path(layout.verdicts_path)
    with progress.task("judge answers", len(requests), "verdicts") as task:
        replies = ask_all(judge, requests, cache, on_reply=task.advance)
    scores: dict[Key, list[float]] = {}
    for key, reply in zip(keys, replies, strict=True):
        score = None if reply.fault else read_score(reply.text)
        if score is not None:
            scores.setdefault(key, []).append(score)
    return {key: sum(values) / len(values) for key, values in scores.items()}
