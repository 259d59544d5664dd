"""Rounds on the student's own answers: joint fusion first, then the student answers prompts and the sources say what they think.

In: a seed whose corpus is made. Out: the figures of an arm that takes as many steps as joint fusion alone. Answers are
sampled off a plain transformers forward; tokens, rows and alignment of them are the product's own stages.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import AutoTokenizer

from fusechat.text.dialogues import Dialogue, Message

from .arms import rule
from .corpus import Corpus, read_corpus, run_stages, write_dialogues
from .loop import Lesson, Settings, train
from .round_lessons import join, lesson_from, over_own_tokens, part_of, read_until
from .sampling import sample
from .seed import Seed, world_config
from .worlds import NEW_QUESTION, SKILLS, ask

WIDE_K = 64
"""Tokens of a source's row where those of the student's own are looked up in it."""


@dataclass(frozen=True)
class Rounds:
    """An arm. All arms of one length take the same number of optimizer steps in all."""

    steps: tuple[int, ...] = (108, 36, 36)
    """Of joint fusion, then of each round."""
    samples: int = 2
    """The student's answers per prompt."""
    temperature: float = 1.0
    given_share: float = 0.33
    """Of a round's dialogues, those that were given; 1: no answers of the student at all."""
    divergence: Literal["ce", "kl", "reverse_kl"] = "ce"
    chosen: bool = False
    """Rows list the student's own top 10 in place of the source's."""
    until: float = 0.0
    """Rows are read up to the first token of an answer that its source finds less probable than this: what follows it
    stands behind something that the source would not say."""
    teacher: Literal["prompt", "answer"] = "prompt"
    """Who teaches an answer: the source that won the given dialogue of its prompt, or the one that wins the answer itself."""
    prompts: Literal["given", "new"] = "given"
    """Those of the training dialogues, or the skills' in the wording that no training dialogue has."""


LONG = (180, 90, 90)
ARMS = {
    "rounds": Rounds(),
    "restarts": Rounds(given_share=1.0),
    "rounds_reverse_kl": Rounds(divergence="reverse_kl"),
    "rounds_chosen": Rounds(divergence="reverse_kl", chosen=True),
    "rounds_until": Rounds(until=0.02),
    "rounds_by_answer": Rounds(teacher="answer"),
    "rounds_own_alone": Rounds(given_share=0.0),
    "rounds_half_given": Rounds(given_share=0.5),
    "rounds_cool": Rounds(temperature=0.5),
    "rounds_new_prompts": Rounds(prompts="new"),
    "long_joint": Rounds(steps=(360,)),
    "long_rounds": Rounds(steps=LONG),
    "long_until": Rounds(steps=LONG, until=0.02),
    "long_restarts": Rounds(steps=LONG, given_share=1.0),
    "long_reverse_kl": Rounds(steps=LONG, divergence="reverse_kl"),
    "long_chosen": Rounds(steps=LONG, divergence="reverse_kl", chosen=True),
    "long_new_prompts": Rounds(steps=LONG, prompts="new"),
}


class RoundsSeed:
    """The arms of one seed, by their names in `ARMS`."""

    def __init__(self, world: str, number: int, out: Path) -> None:
        self.seed = Seed(world, number, out)
        self._fused: dict[int, Any] = {}

    def run(self, arm: str) -> dict[str, Any]:
        """Train an arm and measure it: `figures` as of table.Figures, `rounds` with the counts of each."""
        return run(self.seed, arm, self._fused_after(ARMS[arm].steps[0]))

    def _fused_after(self, steps: int) -> Any:
        """The student of joint fusion, which arms share; training goes on from a copy on disk."""
        if steps not in self._fused:
            seed = self.seed
            settings = Settings(0, seed.number, steps=steps)
            self._fused[steps] = train(seed.corpus, seed.pivot, seed.lesson("joint"), settings).model
        return self._fused[steps]


def run(seed: Seed, name: str, student: Any) -> dict[str, Any]:
    """The rounds of an arm, from the student of joint fusion on."""
    arm, folder = ARMS[name], seed.folder / "rounds" / name
    base = seed.lesson("joint")
    teachers = _teachers(seed.corpus, base)
    counts = []
    for number, steps in enumerate(arm.steps[1:], start=1):
        corpus, lesson = seed.corpus, base
        count: dict[str, Any] = {}
        here = folder / str(number)
        shutil.rmtree(here, ignore_errors=True)
        _save(student, seed.pivot, here / "student")
        if arm.given_share < 1:
            corpus, lesson, count = _round(seed, arm, here, teachers, number)
        settings = Settings(0, seed.number + 1000 * number, steps=steps)
        student = train(corpus, here / "student", lesson, settings).model
        counts.append(count)
        shutil.rmtree(here)
    return {"figures": seed.measure(student), "rounds": counts}


def _teachers(corpus: Corpus, lesson: Lesson) -> dict[tuple[str, str], tuple[int, float]]:
    """(kind, question) -> its given dialogue's source (-1: nobody) and the weight of its rows; ("kind", "") -> the usual one."""
    first = corpus.row_offsets[:-1]
    source, weight = lesson.source[first], lesson.weight[first]
    teaching: dict[tuple[str, str], tuple[int, float]] = {}
    for i, dialogue in enumerate(corpus.train.dialogues):
        teaching[dialogue.kind, dialogue.messages[0].content] = int(source[i]), float(weight[i])
    kinds = corpus.train.kind
    for kind in np.unique(kinds):
        names, numbers = np.unique(source[kinds == kind], return_counts=True)
        usual = int(names[np.argmax(numbers)])
        teaching[str(kind), ""] = usual, float(weight[(kinds == kind) & (source == usual)].max())
    return teaching


def _round(
    seed: Seed, arm: Rounds, folder: Path, teachers: dict[tuple[str, str], tuple[int, float]], number: int
) -> tuple[Corpus, Lesson, dict[str, Any]]:
    """The student answers, the sources score: the round's corpus, answers first, and its lesson."""
    asked = _prompts(seed, arm)
    if arm.teacher == "prompt":  # what nobody teaches need not be asked
        asked = [d for d in asked if _teacher_of(teachers, d)[0] >= 0]
    answers = sample(
        folder / "student", [d.messages[:1] for d in asked], arm.samples, arm.temperature, seed.number * 100 + number
    )
    own = [
        replace(asked[i], id=f"own-{i}-{j}", messages=(asked[i].messages[0], Message("assistant", text)))
        for i, texts in enumerate(answers)
        for j, text in enumerate(texts)
        if text
    ]
    write_dialogues(folder / "train.jsonl", own)
    write_dialogues(folder / "held_out.jsonl", seed.corpus.held_out.dialogues[:2])
    config = world_config(folder, folder / "student", seed.sources, seed.number, k=WIDE_K if arm.chosen else 10)
    run_stages(config)
    mine = read_corpus(config)
    count = {
        "answers": len(own),
        "empty": arm.samples * len(asked) - len(own),
        "right": round(
            float(np.mean([d.messages[1].content in seed.world.answers_to(d) for d in own if d.kind in SKILLS])), 3
        ),
    }
    if arm.teacher == "prompt":
        known = [_teacher_of(teachers, dialogue) for dialogue in mine.train.dialogues]
        lesson = lesson_from(mine, np.array([n for n, _ in known]), np.array([w / 0.9 for _, w in known]))
    else:
        by_rule = rule(mine)
        first = mine.row_offsets[:-1]
        lesson = lesson_from(mine, by_rule.source[first], by_rule.weight[first] / 0.9)
    if arm.until:
        lesson = read_until(mine, lesson, arm.until)
    if arm.chosen:
        lesson = over_own_tokens(mine, lesson)
    taught = np.flatnonzero(lesson.source[mine.row_offsets[:-1]] >= 0)
    count["taught"] = len(taught)
    if not len(taught):
        return seed.corpus, seed.lesson("joint"), count
    mine, lesson = part_of(mine, lesson, taught)
    lesson = replace(lesson, divergence=arm.divergence, is_own=np.ones(len(mine.labels), bool))
    num_given = min(round(len(taught) * arm.given_share / (1 - arm.given_share)), seed.corpus.num_dialogues)
    if num_given:
        order = np.random.default_rng([seed.number, number, 5]).permutation(seed.corpus.num_dialogues)[:num_given]
        mine, lesson = join(mine, lesson, *part_of(seed.corpus, seed.lesson("joint"), order))
    return mine, lesson, count


def _teacher_of(teachers: dict[tuple[str, str], tuple[int, float]], dialogue: Dialogue) -> tuple[int, float]:
    return teachers.get((dialogue.kind, dialogue.messages[0].content), teachers[dialogue.kind, ""])


def _prompts(seed: Seed, arm: Rounds) -> list[Dialogue]:
    """One dialogue per prompt; its answer is not read."""
    if arm.prompts == "new":
        return [ask(skill, noun, NEW_QUESTION, "-", f"{skill}-{noun}") for skill in SKILLS for noun in seed.world.nouns]
    return list({(d.kind, d.messages[0].content): d for d in seed.corpus.train.dialogues}.values())


def _save(model: Any, pivot: Path, folder: Path) -> None:
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(pivot).save_pretrained(folder)
