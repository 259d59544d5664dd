"""A clock that is set back, memory that is not there, two drivers at once, a dialogue that no run can read."""

import json
import time
from pathlib import Path

from .command import Trap, start
from .kills import LONGEST_WAIT
from .trial import Disturbed, Tools
from .world import STAGES, VARIANTS, Run


def clock_back(tools: Tools) -> Disturbed:
    """The clock jumps back, by seconds or years, after a number of readings."""
    draw, variant, stage = tools.draw, tools.draw.choice(list(VARIANTS)), tools.draw.choice(STAGES)
    run = tools.world.begin(variant, stage, tools.folder / "run")
    after, seconds = (
        draw.choice([0, draw.randrange(3000)]),
        draw.choice([1, 60, 3600, 86_400, 30 * 86_400, 5 * 365 * 86_400]),
    )
    ending = start(run.arguments, trap=Trap(clock_after=after, clock_shift=-seconds)).wait()
    what = f"the clock set back by {seconds} s after {after} readings, from {stage} on ({variant})"
    return Disturbed(run, what, [ending], variant)


def little_memory(tools: Tools) -> Disturbed:
    """The driver may take only so many bytes more (RLIMIT_AS)."""
    draw, variant, stage = (
        tools.draw,
        tools.draw.choice(list(VARIANTS)),
        tools.draw.choice([s for s in STAGES if s != "extract"]),
    )
    run = tools.world.begin(variant, stage, tools.folder / "run")
    mib = draw.choice([1, 2, 4, 8, 16, 32, 64, 128, 256])
    ending = start(run.arguments, trap=Trap(memory=mib * 2**20)).wait()
    return Disturbed(run, f"{mib} MiB of memory, from {stage} on ({variant})", [ending], variant)


def two_drivers(tools: Tools) -> Disturbed:
    """A second driver begins a moment later, with the same run folder or with another one over the same store."""
    draw, variant, stage = tools.draw, tools.draw.choice(list(VARIANTS)), tools.draw.choice(STAGES)
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
    how = "another run folder over its store" if shares_store else "its run folder"
    what = f"a second driver with {how} after {wait:.2f} s, from {stage} on ({variant})"
    return Disturbed(run, what, ended, variant)


BAD_ROWS = (
    "{", "[]", '{"id": "bad"}', '{"id": "bad", "messages": []}', '{"id": "bad", "messages": [{"role": "user", "content": "x"}]}',
    '{"id": "bad", "messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "y"}]}',
    '{"id": "d1", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}',
    '{"id": "bad", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": 5}]}',
    '{"id": "bad", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "<|im_end|>"}]}',
    '{"id": "bad", "messages": [{"role": "wizard", "content": "x"}, {"role": "assistant", "content": "y"}]}',
)  # fmt: skip
"""Rows that the rules refuse."""


def poison_row(tools: Tools) -> Disturbed:
    """One row of the dialogue file is one that the rules refuse; its line is taken out as the message says."""
    draw, variant = tools.draw, tools.draw.choice(list(VARIANTS))
    tools.world.undisturbed(variant)
    source = tools.world.inputs / "train.jsonl"
    lines = source.read_text(encoding="utf-8").splitlines()
    row, place = draw.choice(BAD_ROWS), draw.randrange(len(lines) + 1)
    bad = tools.folder / "train.jsonl"
    bad.write_text("\n".join([*lines[:place], row, *lines[place:]]) + "\n", encoding="utf-8")
    run = Run(tools.world.run_file(variant), tools.folder / "run", (f"dialogues.train={json.dumps([str(bad)])}",))
    ending = start(run.arguments).wait()

    def mend() -> None:
        Path(bad).write_text("\n".join(lines) + "\n", encoding="utf-8")

    return Disturbed(run, f"row {place + 1} of a dialogue file: {row[:60]} ({variant})", [ending], variant, cure=mend)
