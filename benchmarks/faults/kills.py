"""Drivers that are killed (SIGKILL) or stand still (SIGSTOP), at random moments and at random operations on files."""

import random
import signal
import time
from collections.abc import Sequence

from .command import KILL, Running, Trap, start
from .trial import Disturbed, Tools
from .world import STAGES, VARIANTS

OPERATIONS = {"tokenize": 420, "extract": 160, "align": 130, "train": 260, "merge": 60, "evaluate": 90}
"""Stage -> about how many operations on files it takes; only says how moments are drawn."""
WEIGHTS = {"tokenize": 1, "extract": 1, "align": 3, "train": 3, "merge": 3, "evaluate": 3}
"""How often a stage is drawn as the first that is done; one with engines takes four times as long as the rest together."""
LONGEST_WAIT = 4.0
"""Seconds that a stage of a tiny run about takes."""


def draw_stage(draw: random.Random, stages: Sequence[str] = STAGES) -> str:
    """A stage from which a disturbed run is done."""
    return draw.choices(stages, [WEIGHTS[stage] for stage in stages])[0]


def kill_at_operation(tools: Tools) -> Disturbed:
    """The driver dies at its n-th change of a file, within any stage."""
    draw, variant, stage = tools.draw, tools.draw.choice(list(VARIANTS)), draw_stage(tools.draw)
    run = tools.world.begin(variant, stage, tools.folder / "run")
    after = draw.randrange(OPERATIONS[stage])
    trap = Trap(folder=str(run.folder), kind=KILL, after=after)
    ending = start(run.arguments, trap=trap).wait()
    return Disturbed(
        run,
        f"SIGKILL of the driver at change {after} of a file from {stage} on ({variant})",
        [ending],
        variant,
        killed=True,
    )


def kill_at_moment(tools: Tools) -> Disturbed:
    """The driver and all of its session die after a while; then once more."""
    draw, variant, stage = tools.draw, tools.draw.choice(list(VARIANTS)), draw_stage(tools.draw)
    run = tools.world.begin(variant, stage, tools.folder / "run")
    waits = [draw.uniform(0.1, LONGEST_WAIT) for _ in range(2)]
    ended = []
    for seconds in waits:
        running = start(run.arguments)
        _wait(running, seconds)
        running.send(signal.SIGKILL)
        ended.append(running.wait())
    shown = " and ".join(f"{seconds:.2f} s" for seconds in waits)
    return Disturbed(
        run, f"SIGKILL of the driver after {shown}, from {stage} on ({variant})", ended, variant, killed=True
    )


def stop(tools: Tools) -> Disturbed:
    """The driver stands still for a while at a random moment, and goes on."""
    draw, variant, stage = tools.draw, tools.draw.choice(list(VARIANTS)), draw_stage(tools.draw)
    run = tools.world.begin(variant, stage, tools.folder / "run")
    seconds = draw.uniform(0.1, LONGEST_WAIT)
    running = start(run.arguments)
    _wait(running, seconds)
    running.send(signal.SIGSTOP)
    time.sleep(tools.pause_seconds)
    running.send(signal.SIGCONT)
    what = f"SIGSTOP of the driver after {seconds:.2f} s for {tools.pause_seconds:g} s, from {stage} on ({variant})"
    return Disturbed(run, what, [running.wait()], variant)


def _wait(running: Running, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and running.is_alive():
        time.sleep(0.01)
