"""Writing on Ray: engines answer the prompts, other models or a judge are asked where the rule needs them, the rule decides.

`run` does it for a run; `write` for any models, prompts and places, such as a student between two rounds.
"""

import contextlib
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from evaluation.judge.judge_client import Request, ask_all, judge_key
from evaluation.judge.judge_prompts import read_score, single_prompt
from fusechat.config import JudgeSection, ModelSection, RunConfig
from fusechat.config.layout import RunLayout
from fusechat.config.writing import WritingSection
from fusechat.errors import ConfigError, DialogueError
from fusechat.models.resolved_model import resolve
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact
from fusechat.storage.work import Work, run_here
from fusechat.text.model_templates import asked_template
from fusechat.text.prompt_stage import prepare_prompts
from fusechat.text.prompts import read_prompts
from inference.serving.faces import FaceName, recipe_of
from inference.writing import scoring, selection, stage
from inference.writing.selection import Key, Known
from inference.writing.stage import Writer

from .pool.preflight import check_engines
from .pool.run_on_ray import Bar, run_on_ray
from .pool.session import ray_session
from .service.attach import Sought, do_served

JUDGE_SECONDS = 10.0
"""Longest wait for a sign that the judge's endpoint is there."""


def check(config: RunConfig) -> None:
    """Refuse, before any engine starts, what writing would refuse.

    Raises:
        ConfigError: no such rule or parameter, nobody to score a writer's answers, no judge, or one that is not there.
        DialogueError: prompts that cannot be read, or no reference where the rule compares with them.
    """
    section = config.writing
    rule, _ = selection.find_rule(section)
    prompts = read_prompts(config.dialogues.prompts, on_bad=config.dialogues.on_bad)
    if rule.needs == "references" and not any(prompt.reference for prompt in prompts):
        raise DialogueError(
            f"writing.keep: {section.keep} compares with references, and none of the {len(prompts):,} prompts has one; add "
            "'reference' to the rows, or choose another rule"
        )
    if rule.needs == "scores":
        scoring.check_scorers([one.name for one in config.writers], [one.name for one in config.scorers])
    if rule.needs == "judge":
        _check_judge(_judge_of(config, section))


def run(config: RunConfig, *, progress: Progress) -> Artifact:
    """Answer the prompts of a run and keep what its rule keeps; raises as `check` and `write`."""
    prepare_prompts(config.layout, config.dialogues, progress=progress)
    return write(config, config.layout, config.writers, config.writing, seed=config.run.seed, progress=progress)


def write(
    config: RunConfig,
    layout: RunLayout,
    models: Sequence[ModelSection],
    section: WritingSection,
    *,
    seed: int,
    progress: Progress,
) -> Artifact:
    """Let models answer the prompts at `layout.prompts_path`, and decide what is kept.

    Args:
        config: of the cluster, the pivot's template, and the scorers and judge that a rule may ask for.
        layout: where prompts, answers and dialogues lie; another than the run's puts them elsewhere.
        models: who writes; a folder that FuseChat trained is asked as its `fusechat_prompt.json` says.
        seed: of sampling and lots, where the section has none.
    Returns:
        the artifact of the dialogues that are kept (`layout.written_path`).
    Raises:
        ArtifactError: another recipe's work stands in a folder.
        DialogueError: nothing is kept.
        ClusterError: an engine could not start, or chunks were set aside. In all cases what was answered is kept.
    """
    seed = seed if section.seed is None else section.seed
    date = artifact.load(layout.prompts_path, "prompts").counts["date"]
    writers = [_writer(config, model, date) for model in models]
    names = [one.model.name for one in writers]
    rule, _ = selection.find_rule(section)
    works = stage.prepare(layout, writers, section, config.cluster, seed=seed)
    with contextlib.ExitStack() as stack:
        if rule.needs == "scores" and any(work.missing for work in works):
            stack.enter_context(ray_session(config.cluster))  # one for the writers and the scorers
        answers = dict(zip(names, _do(config, works, writers, "generate", progress), strict=True))
        return _decide(config, layout, names, section, answers, date=date, seed=seed, progress=progress)


def _decide(
    config: RunConfig,
    layout: RunLayout,
    names: list[str],
    section: WritingSection,
    answers: dict[str, Artifact],
    *,
    date: str,
    seed: int,
    progress: Progress,
) -> Artifact:
    """Ask scorers or a judge where the rule needs them, and let it decide; raises as `write`."""
    rule, _ = selection.find_rule(section)
    scorers = [_writer(config, model, date) for model in config.scorers] if rule.needs == "scores" else []
    judge = _judge_of(config, section) if rule.needs == "judge" else None
    asked = [one.model.section for one in scorers]
    decided = selection.recipe(section, names, asked, judge, seed)
    claim = selection.claim(layout, decided, answers, {one.model.name: one.model.digests for one in scorers})
    if claim.artifact is not None:
        return claim.artifact
    known = Known.nothing()
    if scorers:
        known = Known(_scores(config, layout, names, scorers, answers, progress), {})
    if judge is not None:
        known = Known({}, _judged(judge, layout, names, progress))
    made = selection.keep(claim, layout, names, section, known, seed=seed)
    counts = made.counts
    progress.say(
        f"write: {counts['dialogues']:,} of {counts['answers']:,} answers kept by {section.keep!r}; "
        f"{counts['prompts_without_answer']:,} of {counts['prompts']:,} prompts have none"
    )
    return made


def _writer(config: RunConfig, model: ModelSection, date: str) -> Writer:
    return Writer(resolve(model, config.digests_path), asked_template(model, config.pivot, date))


def _do(
    config: RunConfig, works: list[Work], writers: list[Writer], face: FaceName, progress: Progress
) -> list[Artifact]:
    """What is left of works, one of each writer: by a running service that has its engine, else on Ray."""
    asked = [Sought(work, face, partial(_recipes, config, face, one)) for one, work in zip(writers, works, strict=True)]
    served = {name: artifact for name, (artifact,) in do_served(config.cluster, asked, progress=progress).items()}
    left = [work for work in works if work.name not in served]
    made = _on_ray(config, left, [one.model.section for one in writers if one.model.name not in served], face, progress)
    artifacts = served | dict(zip([work.name for work in left], made, strict=True))
    return [artifacts[work.name] for work in works]


def _recipes(config: RunConfig, face: FaceName, writer: Writer, _engine: Mapping[str, Any]) -> list[str]:
    """What an engine of a service that stands for a writer or scorer must have."""
    return [recipe_of(face, writer.model, writer.template.text, config.extraction)]


def _on_ray(
    config: RunConfig, works: list[Work], models: list[ModelSection], face: FaceName, progress: Progress
) -> list[Artifact]:
    begun = [work for work in works if work.missing]
    if not begun:
        return run_here(works, progress)
    verb = "write" if face == "generate" else "score answers"
    total, done = sum(work.total for work in works), sum(work.done for work in works)
    with ray_session(config.cluster), progress.task(verb, total, begun[0].measure, done=done) as task:
        check_engines(config, models, {"run.output": str(config.run.output / "writing")})
        progress.say(f"{verb}: starting {len(begun)} models on Ray: {', '.join(work.name for work in begun)}")
        return run_on_ray(
            works, config.cluster, max_attempts=config.cluster.max_attempts, progress=progress,
            workers_per_work=config.cluster.engines, listen=lambda work: Bar(task, work),
        )  # fmt: skip


def _scores(
    config: RunConfig,
    layout: RunLayout,
    writers: list[str],
    scorers: list[Writer],
    answers: dict[str, Artifact],
    progress: Progress,
) -> dict[Key, dict[str, float]]:
    """Other models' logprobs of all whole answers, by answer and scorer."""
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


def _judge_of(config: RunConfig, section: WritingSection) -> JudgeSection:
    judge = section.judge or config.evaluation.judge
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
