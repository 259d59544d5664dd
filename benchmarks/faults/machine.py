"""A clock that is set back, memory that is not there, two drivers at once, a dialogue that no run can read."""

import contextlib
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

from .command import Ending, Trap, start
from .kills import LONGEST_WAIT, draw_stage
from .trial import Disturbed, Tools
from .world import STAGES, VARIANTS, Run


def clock_back(tools: Tools) -> Disturbed:
    """The clock jumps back, by seconds or years, after a number of readings."""
    draw, variant, stage = tools.draw, tools.draw.choice(list(VARIANTS)), draw_stage(tools.draw)
    run = tools.world.begin(variant, stage, tools.folder / "run")
    after, seconds = (
        draw.choice([0, draw.randrange(3000)]),
        draw.choice([1, 60, 3600, 86_400, 30 * 86_400, 5 * 365 * 86_400]),
    )
    ending = start(run.arguments, trap=Trap(clock_after=after, clock_shift=-seconds)).wait()
    what = f"the clock set back by {seconds} s after {after} readings, from {stage} on ({variant})"
    return Disturbed(run, what, [ending], variant)


MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")
"""Where the system lets root limit the memory of a group of processes (cgroup v1)."""
GROUP_SECONDS = 30.0
"""Until a group whose processes were killed must be empty."""
ENDED_WITHIN = (-6, -9)
"""Statuses of a process that a library ends when it gets no memory (SIGABRT), and that the system ends (SIGKILL)."""


def little_memory(tools: Tools) -> Disturbed:
    """The driver may take only so many bytes more: of address space (RLIMIT_AS), or of memory (a cgroup, whose end is SIGKILL)."""
    draw, variant, stage = (
        tools.draw,
        tools.draw.choice(list(VARIANTS)),
        draw_stage(tools.draw, [stage for stage in STAGES if stage != "extract"]),
    )
    run = tools.world.begin(variant, stage, tools.folder / "run")
    mib = draw.choice([16, 32, 64, 128, 256, 512])
    if draw.random() < 0.5 and MEMORY_GROUPS.is_dir() and os.access(MEMORY_GROUPS, os.W_OK):
        ending, how = _in_a_group(tools, run, mib * 2**20), "cgroup"
    else:
        ending, how = start(run.arguments, trap=Trap(memory=mib * 2**20)).wait(), "RLIMIT_AS"
    what = f"{mib} MiB of memory ({how}), from {stage} on ({variant})"
    return Disturbed(run, what, [ending], variant, killed=ending.status in ENDED_WITHIN)


def _in_a_group(tools: Tools, run: Run, limit: int) -> Ending:
    """Run within a memory group of its own."""
    group = MEMORY_GROUPS / f"faults.{os.getpid()}.{tools.folder.name}"
    group.mkdir(exist_ok=True)
    (group / "memory.limit_in_bytes").write_text(str(limit))
    try:
        return start(run.arguments, prepare=partial(_join, str(group / "cgroup.procs"))).wait()
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    """A group can go when the last of its processes is gone; what the driver had started may outlive it for a moment."""
    deadline = time.monotonic() + GROUP_SECONDS
    while True:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        try:
            return group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _join(path: str) -> None:
    with open(path, "w") as file:
        file.write(str(os.getpid()))


def two_drivers(tools: Tools) -> Disturbed:
    """A second driver begins a moment later, with the same run folder or with another one over the same store."""
    draw, variant, stage = tools.draw, tools.draw.choice(list(VARIANTS)), draw_stage(tools.draw)
    run = tools.world.begin(variant, stage, tools.folder / "run")
    shares_store = draw.random() < 0.5
    other = run
    if shares_store:
        store = f"run.store={tools.folder / 'run'}"
        other = Run(run.file, tools.folder / "other", (store,))
        run = Run(run.file, run.folder, (store,))
    wait = draw.uniform(0, LONGEST_WAIT)
    first = start(run.arguments)
    time.sleep(wait)
    second = start(other.arguments).wait()
    ended = [second, first.wait()]
    if shares_store and second.status in (1, 2):
        ended.insert(1, start(other.arguments).wait())  # as its line says: when the first has ended
    how = "another run folder over its store" if shares_store else "its run folder"
    what = f"a second driver with {how} after {wait:.2f} s, from {stage} on ({variant})"
    return Disturbed(run, what, ended, variant)


BAD_ROWS = (
    "{", "[]", '{"id": "bad"}', '{"id": "bad", "messages": []}', '{"id": "bad", "messages": [{"role": "user", "content": "x"}]}',
    '{"id": "bad", "messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "y"}]}',
    '{"id": "d1", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}',
    '{"id": "bad", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": 5}]}',
    '{"id": "bad", "messages": [{"role": "wizard", "content": "x"}, {"role": "assistant", "content": "y"}]}',
)  # fmt: skip
"""Rows that the rules refuse."""


_POISON = threading.Lock()
"""The recipes name the dialogue file, so that there is one for all of these faults."""


def poison_row(tools: Tools) -> Disturbed:
    """One row of the dialogue file is one that the rules refuse; its line is taken out as the message says."""
    _POISON.acquire()
    draw, world = tools.draw, tools.world
    lines = (world.inputs / "train.jsonl").read_text(encoding="utf-8").splitlines()
    file = world.base / "poison.jsonl"

    def write(rows: list[str]) -> None:
        file.write_text("\n".join(rows) + "\n", encoding="utf-8")

    write(lines)
    values = {**VARIANTS["rows"], "dialogues": {"train": [str(file)]}}
    run = Run(world.run_file("poison", values), tools.folder / "run")
    world.undisturbed("poison")
    row, place = draw.choice(BAD_ROWS), draw.randrange(len(lines) + 1)
    write([*lines[:place], row, *lines[place:]])
    ending = start(run.arguments).wait()
    what = f"row {place + 1} of a dialogue file: {row[:60]}"
    return Disturbed(run, what, [ending], "poison", cure=lambda: write(lines), end=_POISON.release)
