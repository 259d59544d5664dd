"""The door of a round: what the student is asked, who will teach its answers, and which given dialogues are mixed in.

In: the choice of the run that the round belongs to, its dialogues, and files of prompts if there are some. Out: the artifact
`asked`: `prompts.jsonl`, `given.jsonl` and `teachers.json`. Knows nothing about who answers or trains.

By its own labels nobody can say who should teach the student's answer: a source that knows better finds a wrong answer
improbable, as one that knows nothing does. So the answer is taught by whoever teaches the given dialogue of that prompt, with
the same trust; to a prompt that no given dialogue has, by whoever teaches most dialogues of its kind; and what nobody teaches
is not asked.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fusechat.config import RoundsSection, RunConfig
from fusechat.config.layout import RunLayout
from fusechat.errors import ConfigError
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact
from fusechat.storage.write_errors import storage_errors
from fusechat.text.dialogues import Dialogue, read_dialogues, row_text
from fusechat.text.prompts import Prompt, prompt_of, read_prompts

from .choice import NOBODY
from .choice_artifact import Choice
from .known_answers import answered_wrongly, refused_prompts
from .round_teachers import Teacher, write_teachers

PROMPTS_FILE, GIVEN_FILE, TRAIN_FILE = "prompts.jsonl", "given.jsonl", "train.jsonl"


@dataclass(frozen=True)
class Asking:
    """What decides a round's prompts beside the run's choice and dialogues."""

    section: RoundsSection
    prompt_files: tuple[str, ...]
    """Files of prompts; none: the training dialogues are asked again."""
    exact_kinds: tuple[str, ...]
    """Kinds whose last answer is a reference: a prompt that every source answers otherwise is not asked."""
    were_compared: bool
    """The sources have answered the prompts of the files, and their answers were compared with the references."""
    pivot: str
    sources: tuple[str, ...]
    seed: int
    on_bad: Literal["refuse", "skip"]
    """What to do with a row that is no prompt."""

    @classmethod
    def of(cls, config: RunConfig, one: RunConfig) -> "Asking":
        """What a run says of one of its rounds, which is a run as well."""
        compared = bool(config.dialogues.prompts and not config.rounds.prompts and config.writing.keep == "reference")
        return cls(
            config.rounds, tuple(config.rounds.prompts or config.dialogues.prompts), tuple(config.evaluation.exact.kinds),
            compared, config.pivot.name, tuple(source.name for source in config.sources), one.run.seed, config.dialogues.on_bad,
        )  # fmt: skip


def ask(base: RunLayout, layout: RunLayout, asking: Asking, *, progress: Progress) -> Artifact:
    """Write what one round asks.

    Args:
        base: of the run that the round belongs to.
        layout: of the round.
    Raises:
        ConfigError: no prompt is left.
        DialogueError: files of prompts that cannot be read.
        ArtifactError: the choice is not finished, or another recipe's work stands there.
    """
    section, files = asking.section, list(asking.prompt_files)
    prompts = read_prompts(files, on_bad=asking.on_bad) if files else []
    exact = asking.exact_kinds if not files else ()
    parents = {
        "choice": artifact.load(base.choice_url, "choice"),
        "dialogues": artifact.load(base.dialogues_path, "dialogues"),
        **({f"rows.{name}": artifact.load(base.logprobs_url(name), "logprobs") for name in asking.sources} if exact else {}),
        **({"written": artifact.load(base.written_path, "written")} if asking.were_compared else {}),
    }  # fmt: skip
    settings = {
        "samples": section.samples, "given_share": section.given_share, "exact_kinds": list(exact), "seed": asking.seed,
        "prompts": _digest(prompts) if files else None, "pivot": asking.pivot,
    }  # fmt: skip
    claim = artifact.claim(layout.asked_path, "asked", settings=settings, parents=parents, if_changed=layout.if_changed)
    if claim.artifact is not None:
        return claim.artifact
    given = GivenDialogues(base)
    if files:
        asked = _asked_prompts(prompts, given, refused_prompts(base) if asking.were_compared else set())
    else:
        asked = _asked_again(given, answered_wrongly(base, asking.sources, given.kinds, exact))
    rows, teachers, counts = _chosen(asked)
    if not rows:
        raise ConfigError(
            f"rounds: none of {counts['prompts']:,} prompts is taught by a source ({counts['untaught']:,} nobody teaches, "
            f"{counts['wrong']:,} every source answers wrongly); leave rounds out, or name other prompts in rounds.prompts"
        )
    mixed = _mixed_in(given, asking, len(rows) * section.samples)
    _write(layout.asked_path / PROMPTS_FILE, rows)
    _write(layout.asked_path / GIVEN_FILE, map(row_text, mixed.values()))
    write_teachers(layout, prompts=teachers, given={d.id: given.teacher(number) for number, d in mixed.items()})
    progress.say(
        f"ask: {len(rows):,} of {counts['prompts']:,} prompts ({counts['untaught']:,} nobody teaches, {counts['wrong']:,} every "
        f"source answers wrongly, {counts['held_out']:,} are held out), {len(mixed):,} given dialogues beside the answers"
    )
    return claim.finish({**counts, "asked": len(rows), "given": len(mixed)})


class GivenDialogues:
    """The training dialogues of a run and who teaches them, read one after the other."""

    def __init__(self, base: RunLayout) -> None:
        self._base, self._choice = base, Choice.read(base.choice_url)
        self.kinds = [dialogue.kind for dialogue in self]
        self._of_kind: dict[str, Counter[Teacher]] = {}
        for number, kind in enumerate(self.kinds):
            self._of_kind.setdefault(kind, Counter())[self.teacher(number)] += 1

    def __iter__(self) -> Iterator[Dialogue]:
        return read_dialogues(self._base.dialogues_path / TRAIN_FILE)

    def __len__(self) -> int:
        return len(self._choice.source)

    def teacher(self, dialogue: int) -> Teacher:
        """Of one dialogue, by its number."""
        source = int(self._choice.source[dialogue])
        return (None, 0.0) if source == NOBODY else (self._choice.sources[source], float(self._choice.trust[dialogue]))

    def teacher_of_kind(self, kind: str) -> Teacher | None:
        """Whoever teaches most of a kind's dialogues; None: there are none of that kind."""
        return self._of_kind[kind].most_common(1)[0][0] if kind in self._of_kind else None

    def held_out(self) -> set[bytes]:
        """Keys of the prompts of held-out dialogues."""
        path = self._base.dialogues_path / "held_out.jsonl"
        return {_key(_prompt_of(dialogue)) for dialogue in (read_dialogues(path) if path.stat().st_size else ())}


Candidate = tuple[Prompt, str, Teacher, str]
"""A prompt, its row as files of prompts hold it, its teacher, and why it is left out ("": it is not)."""


def _asked_again(given: GivenDialogues, wrong: np.ndarray) -> Iterator[Candidate]:
    """The training dialogues without their last answers."""
    for number, dialogue in enumerate(given):
        teacher = given.teacher(number)
        reason = "untaught" if teacher[0] is None else "wrong" if wrong[number] else ""
        yield _prompt_of(dialogue), row_text(replace(dialogue, author="")), teacher, reason


def _asked_prompts(prompts: Sequence[Prompt], given: GivenDialogues, wrong: set[str]) -> Iterator[Candidate]:
    """Prompts of files: taught as the given dialogue of the same prompt, or as most of their kind; `wrong`: ids."""
    by_key: dict[bytes, Teacher] = {}
    for number, dialogue in enumerate(given):
        by_key.setdefault(_key(_prompt_of(dialogue)), given.teacher(number))
    held_out = given.held_out()
    for prompt in prompts:
        key = _key(prompt)
        teacher = by_key.get(key) or given.teacher_of_kind(prompt.dialogue.kind) or (None, 0.0)
        untaught = "untaught" if teacher[0] is None else ""
        reason = "held_out" if key in held_out else "wrong" if prompt.id in wrong else untaught
        yield prompt, json.dumps(_question_row(prompt), ensure_ascii=False), teacher, reason


def _chosen(candidates: Iterator[Candidate]) -> tuple[list[str], dict[str, Teacher], dict[str, int]]:
    """Rows of the prompts that are asked, each once; their teachers by id; counts."""
    rows: list[str] = []
    teachers: dict[str, Teacher] = {}
    seen: set[bytes] = set()
    counts = {"prompts": 0, "untaught": 0, "wrong": 0, "held_out": 0, "twice": 0}
    for prompt, row, teacher, reason in candidates:
        counts["prompts"] += 1
        if not reason and (key := _key(prompt)) in seen:
            reason = "twice"
        if reason:
            counts[reason] += 1
            continue
        seen.add(key)
        rows.append(row)
        teachers[prompt.id] = teacher
    return rows, teachers, counts


def _mixed_in(given: GivenDialogues, asking: Asking, answers: int) -> dict[int, Dialogue]:
    """The given dialogues of a round by their numbers: their share beside so many answers, drawn by the seed."""
    share = asking.section.given_share
    wanted = min(round(answers * share / (1 - share)), len(given))
    drawn = np.random.default_rng([asking.seed, len(given)]).permutation(len(given))[:wanted]
    numbers = set(drawn.tolist())
    # An author who is the student's namesake wrote with other weights: what it wrote is given.
    return {
        number: replace(dialogue, author="") if dialogue.author == asking.pivot else dialogue
        for number, dialogue in enumerate(given) if number in numbers
    }  # fmt: skip


def _prompt_of(dialogue: Dialogue) -> Prompt:
    return prompt_of(dialogue.to_row(), dialogue.id)


def _key(prompt: Prompt) -> bytes:
    """Of all that stands before the answer."""
    asked = prompt.dialogue
    parts: list[Any] = [asked.to_row() | {"id": "", "kind": ""}, list(prompt.turns)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()[:16]


def _question_row(prompt: Prompt) -> dict[str, Any]:
    """A prompt as files of prompts hold it."""
    row = prompt.dialogue.to_row()
    if prompt.turns:
        (asked,) = [message for message in prompt.dialogue.messages if message.role == "user"]
        system = [message.content for message in prompt.dialogue.messages if message.role == "system"]
        del row["messages"]
        row |= {"turns": [asked.content, *prompt.turns], **({"system": system[0]} if system else {})}
    return row | ({"reference": prompt.reference} if prompt.reference else {})


def _digest(prompts: Sequence[Prompt]) -> str:
    text = json.dumps([prompt.to_row() for prompt in prompts], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write(path: Path, rows: Iterable[str]) -> None:
    with storage_errors(path), path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(f"{row}\n")
