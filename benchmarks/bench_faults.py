"""A machine that breaks at will: faults into whole runs on tiny models, and what is left compared with an undisturbed run.

    python -m benchmarks.bench_faults [--quick] [--folder DIR] [--at-once 1] [--only FAMILY ...] [--again] [--minutes N]

Each fault has a number, which is its seed: what is drawn is the same in every collection. A fault disturbs `fusechat run`
(from any stage on; what stands before it is copied from an undisturbed run), then the command is given again, after what its
one clear line names, until it finishes. Then every file of the run is compared, see `faults/equal.py`.
`--folder` keeps what was collected: the same command goes on there, also where `--minutes` ended the one before. The last line is
one JSON object: `faults`, `lost` (files
that are not there), `doubled` (files and lines too many), `differing` (files with other bytes), `tracebacks`,
`unexplained_endings` (without one clear line, or not mended by what it names), `seconds`.
"""

import argparse
import json
import random
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .faults import command, damage, disk, kills, machine, s3, service, workers
from .faults.trial import Fault, Judgement, Tools, judge
from .faults.world import World

FAMILIES: dict[str, tuple[Fault, int, int]] = {
    "kill at a change": (kills.kill_at_operation, 36, 2),
    "kill at a moment": (kills.kill_at_moment, 16, 2),
    "stop": (kills.stop, 8, 1),
    "damage between": (damage.between, 40, 4),
    "damage during": (damage.during, 16, 1),
    "failing writes": (disk.failing_writes, 24, 2),
    "failing changes": (disk.failing_changes, 16, 2),
    "small disk": (disk.small_disk, 12, 1),
    "clock": (machine.clock_back, 10, 1),
    "memory": (machine.little_memory, 10, 1),
    "two drivers": (machine.two_drivers, 10, 1),
    "poison row": (machine.poison_row, 6, 1),
    "object store": (s3.failing_store, 16, 1),
    "engine": (workers.kill("engine"), 4, 0),
    "pool worker": (workers.kill("pool worker"), 4, 0),
    "merge worker": (workers.kill("merge worker"), 4, 0),
    "training worker": (workers.kill("training worker"), 3, 0),
    "node": (workers.kill("node"), 3, 0),
    **{name: (service.kill(name), 2, 0) for name in service.VICTIMS},
    "rank": (workers.kill("rank"), 3, 0),
}
"""Family -> fault, how many of the whole, how many of the quick collection."""
ONE_AT_A_TIME = {*workers.VICTIMS, *service.VICTIMS}
"""Families whose faults share a Ray or a service."""
STOP_SECONDS, QUICK_STOP_SECONDS = 60.0, 2.0


def main() -> None:
    """Collect what is missing, then show all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 faults, short pauses")
    parser.add_argument("--folder", type=Path, help="where inputs and judgements are kept; default: a temporary one")
    parser.add_argument("--at-once", type=int, default=1, help="faults side by side")
    parser.add_argument("--only", nargs="*", default=[], help="families")
    parser.add_argument("--again", action="store_true", help="try those once more that did not end well")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no fault begins later than this")
    given = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults.") as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        judgements = collect(
            folder, quick=given.quick, at_once=given.at_once, only=given.only, again=given.again,
            deadline=started + 60 * given.minutes,
        )  # fmt: skip
    for judgement in judgements:
        if not judgement.is_good:
            print(json.dumps(judgement.record(), ensure_ascii=False))
    for name in FAMILIES:
        of = [judgement for judgement in judgements if judgement.family == name]
        if of:
            helped = sum(bool(judgement.remedies) for judgement in of)
            print(f"{name}: {len(of)} faults, {sum(j.is_good for j in of)} well, {helped} after a remedy")
    print(json.dumps(summary(judgements, time.monotonic() - started)))


def summary(judgements: list[Judgement], seconds: float) -> dict[str, float]:
    """The last line."""
    return {
        "faults": len(judgements),
        "lost": sum(len(judgement.lost) for judgement in judgements),
        "doubled": sum(len(judgement.doubled) for judgement in judgements),
        "differing": sum(len(judgement.differing) for judgement in judgements),
        "tracebacks": sum(judgement.tracebacks for judgement in judgements),
        "unexplained_endings": sum(len(judgement.unexplained) for judgement in judgements),
        "seconds": round(sum(judgement.seconds for judgement in judgements) or seconds, 1),
    }


def faults_of(folder: Path, quick: bool, only: list[str]) -> list[tuple[int, str, Fault]]:
    """(number, family, fault), the families mixed, so that a collection cut short has some of each."""
    mounts = disk.can_mount(folder / "mounts")
    drawn = []
    for place, (name, (fault, whole, few)) in enumerate(FAMILIES.items()):
        if only and name not in only:
            continue
        if name == "small disk" and not mounts:
            print("no small disk: mounting one takes root; writes that fail take its place")
            fault = disk.failing_writes
        drawn += [(1000 * place + number, name, fault) for number in range(few if quick else whole)]
    random.Random(0).shuffle(drawn)
    return drawn


def collect(
    folder: Path, *, quick: bool, at_once: int, only: list[str], again: bool = False, deadline: float = float("inf")
) -> list[Judgement]:
    """All judgements, those of earlier calls among them.

    Args:
        deadline: `time.monotonic()` after which no fault begins.
    """
    file = folder / ("quick.jsonl" if quick else "whole.jsonl")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    known = {judgement.number: judgement for judgement in (Judgement(**json.loads(line)) for line in lines)}
    if again:
        known = {number: judgement for number, judgement in known.items() if judgement.is_good}
    world = World(folder)
    wanted = faults_of(folder, quick, only)
    command.start_server()
    for variant in ("rows", "joint"):
        world.undisturbed(variant)

    def one(item: tuple[int, str, Fault]) -> Judgement | None:
        if time.monotonic() > deadline:
            return None
        number, family, fault = item
        place = folder / "trials" / str(number)
        disk.unmount(place / "disk")
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        tools = Tools(world, random.Random(number), place, QUICK_STOP_SECONDS if quick else STOP_SECONDS)
        started = time.monotonic()
        judgement = judge(number, family, fault, tools)
        judgement.seconds = round(time.monotonic() - started, 1)
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(judgement.record(), ensure_ascii=False) + "\n")
        state = "well" if judgement.is_good else "NOT WELL"
        print(
            f"{number:>6} {family}: {judgement.what}: {state}, {judgement.seconds} s {' '.join(judgement.remedies)}",
            flush=True,
        )
        disk.unmount(place / "disk")
        if judgement.is_good:
            shutil.rmtree(place, ignore_errors=True)
        return judgement

    left = [item for item in wanted if item[0] not in known]
    try:
        with ThreadPoolExecutor(at_once) as threads:
            made = list(threads.map(one, [item for item in left if item[1] not in ONE_AT_A_TIME]))
        # Nodes of a Ray are started in the main thread, and their workers told apart by them: one fault after the other.
        made += [one(item) for item in left if item[1] in ONE_AT_A_TIME]
    finally:
        workers.end()
        service.end()
    numbers = {number for number, _, _ in wanted}
    collected = [judgement for number, judgement in known.items() if number in numbers]
    collected += [judgement for judgement in made if judgement is not None]
    if len(collected) < len(wanted):
        print(f"{len(wanted) - len(collected)} faults are left: give the same command again")
    return collected


if __name__ == "__main__":
    main()
