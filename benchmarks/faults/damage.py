"""Files that change under a run: bits flipped, objects cut, emptied and deleted, between stages and while one works."""

import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from .command import start
from .equal import LEFT_OUT
from .kills import LONGEST_WAIT, draw_stage
from .trial import Disturbed, Tools
from .world import MADE, STAGES, VARIANTS, Run

HARMS = ("flip", "cut", "empty", "delete")


def harm(path: Path, how: str, draw: random.Random) -> str:
    """Change a file; returns what was done to it."""
    if how == "delete":
        path.unlink()
        return "deleted"
    data = bytearray(path.read_bytes())
    if how == "empty" or not data:
        path.write_bytes(b"")
        return "emptied"
    if how == "cut":
        size = draw.randrange(len(data))
        path.write_bytes(bytes(data[:size]))
        return f"cut to {size} of {len(data)} bytes"
    place, bit = draw.randrange(len(data)), draw.randrange(8)
    data[place] ^= 1 << bit
    path.write_bytes(bytes(data))
    return f"bit {bit} of byte {place} flipped"


def between(tools: Tools) -> Disturbed:
    """A file of a finished artifact is not as it was when the run goes on, at the next stage or when all is done."""
    draw, variant = tools.draw, tools.draw.choice(list(VARIANTS))
    made = draw.choice(STAGES)
    later = draw.choice([*STAGES[STAGES.index(made) + 1 :], "done"])
    run = tools.world.begin(variant, later, tools.folder / "run")
    path = _pick(run, MADE[made], draw)
    done = harm(path, draw.choice(HARMS), draw)
    what = f"{path.relative_to(run.folder)} {done} before {later} ({variant})"
    return Disturbed(run, what, [start(run.arguments).wait()], variant)


def during(tools: Tools) -> Disturbed:
    """A file of the run changes while a stage works, finished or not."""
    draw, variant, stage = tools.draw, tools.draw.choice(list(VARIANTS)), draw_stage(tools.draw, STAGES[1:])
    run = tools.world.begin(variant, stage, tools.folder / "run")
    seconds = draw.uniform(0.2, LONGEST_WAIT)
    running = start(run.arguments)
    harmed: list[str] = []

    def change() -> None:
        time.sleep(seconds)
        for _ in range(20):
            path = _pick(run, [name for names in MADE.values() for name in names], draw)
            try:
                harmed.append(f"{path.relative_to(run.folder)} {harm(path, draw.choice(HARMS), draw)}")
                return
            except FileNotFoundError:
                continue  # renamed or deleted meanwhile

    thread = threading.Thread(target=change)
    thread.start()
    ending = running.wait()
    thread.join()
    what = f"{', '.join(harmed)} after {seconds:.2f} s, from {stage} on ({variant})"
    return Disturbed(run, what, [ending], variant, may_change_quietly=True)


def _pick(run: Run, folders: Sequence[str], draw: random.Random) -> Path:
    """A file of a run: first a kind of artifact is drawn, then one of its files, so that stores with many do not take all."""
    kinds = [run.folder / name for name in folders if (run.folder / name).is_dir()]
    files: list[Path] = []
    while not files:
        kind = draw.choice(kinds)
        files = [path for path in sorted(kind.rglob("*")) if path.is_file() and not _left_out(path, run)]
    return draw.choice(files)


def _left_out(path: Path, run: Run) -> bool:
    return bool(LEFT_OUT.search(str(path.relative_to(run.folder)))) and path.name != "index.html"
