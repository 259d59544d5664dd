"""One fault from its beginning to its judgement: a run is disturbed, then helped as it says, then compared."""

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import command, endings
from .command import Ending
from .equal import compare, contents
from .world import Run, World

MAX_REMEDIES = 4
"""Commands after the disturbed one; what takes more is not mended by what it names."""


@dataclass
class Judgement:
    """What became of one fault."""

    number: int
    family: str
    what: str
    status: int = 0
    """Of the disturbed command."""
    message: str = ""
    """Its clear line."""
    remedies: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    tracebacks: int = 0
    unexplained: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        """Nothing lost, doubled, differing or unexplained."""
        return not (self.lost or self.doubled or self.differing or self.tracebacks or self.unexplained)

    def record(self) -> dict[str, Any]:
        """As it is kept."""
        return asdict(self)


@dataclass(frozen=True)
class Tools:
    """What a fault is given."""

    world: World
    draw: random.Random
    """Its own, seeded with its number."""
    folder: Path
    """Its own, empty."""
    pause_seconds: float
    """How long SIGSTOP stops something."""


@dataclass
class Disturbed:
    """What a fault leaves to be judged."""

    run: Run
    what: str
    """In words, with all that was drawn."""
    endings: list[Ending]
    """Of the disturbed commands; the last one's message says what to do."""
    variant: str
    cure: Callable[[], None] = lambda: None
    """What the outside has to do before the next command: free the disk, mend the file."""
    killed: bool = False
    """A SIGKILL was sent, so that ending is the fault's own."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the commands after it."""
    left: Callable[[], dict[str, bytes]] | None = None
    """What stands at the end, where that is not the run's folder."""
    end: Callable[[], None] = lambda: None
    """Called when all is judged."""
    may_change_quietly: bool = False
    """Files were changed while the command worked: it may have ended before it could see that."""


Fault = Callable[[Tools], Disturbed]


def judge(number: int, family: str, fault: Fault, tools: Tools) -> Judgement:
    """Try one fault."""
    disturbed = fault(tools)
    try:
        return _judge(number, family, disturbed, tools)
    finally:
        disturbed.end()


def _judge(number: int, family: str, disturbed: Disturbed, tools: Tools) -> Judgement:
    judgement = Judgement(number, family, disturbed.what, disturbed.endings[-1].status)
    for ending in disturbed.endings:
        _look_at(ending, judgement, killed=disturbed.killed)
    disturbed.cure()
    _help(disturbed, judgement)
    got = disturbed.left() if disturbed.left else contents(disturbed.run.folder)
    difference = compare(tools.world.reference(disturbed.variant), got)
    judgement.lost, judgement.doubled, judgement.differing = difference.lost, difference.doubled, difference.differing
    return judgement


def _look_at(ending: Ending, judgement: Judgement, *, killed: bool) -> None:
    judgement.tracebacks += endings.has_traceback(ending)
    if ending.status == 0 or (killed and ending.status < 0):
        return
    if not endings.is_clear(ending):
        judgement.unexplained.append(f"status {ending.status}: {ending.stderr[-1200:]}")
    elif not judgement.message:
        judgement.message = endings.message_of(ending)[:600]


def _help(disturbed: Disturbed, judgement: Judgement) -> None:
    """Give the same command again, after what each message names, until it finishes."""
    ending, run = disturbed.endings[-1], disturbed.run
    for _ in range(MAX_REMEDIES):
        if ending.status == 0 and not disturbed.may_change_quietly:
            return
        disturbed.may_change_quietly = False
        if ending.status in (1, 2):
            followed = endings.follow(ending, run, lambda given: command.run(given, **disturbed.options))
            if followed is None:
                judgement.unexplained.append(f"names no remedy: {endings.message_of(ending)[:600]}")
                return
            judgement.remedies.append(followed[0])
            run = followed[1]
        ending = command.run(run.arguments, **disturbed.options)
        _look_at(ending, judgement, killed=False)
        run = disturbed.run
    if ending.status != 0:
        judgement.unexplained.append(f"not mended after {MAX_REMEDIES} remedies: {endings.message_of(ending)[:600]}")
