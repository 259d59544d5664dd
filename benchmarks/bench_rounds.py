"""Do rounds on the student's own answers help? Joint fusion against joint fusion and two rounds, at equal total steps.

    python -m benchmarks.bench_rounds [--quick] [--seeds 5] [--arms rounds,...] [--out runs/bench_fusion]

World B of `bench_fusion`, whose folder it shares: worlds, models and the arms that are there already. After joint fusion
the student answers the prompts of its training dialogues, the sources score its answers, and it is trained on their rows
without any label, beside some of the given dialogues; twice. What an arm changes stands in fusion/rounds.py; `restarts`
takes the same steps in the same three parts on the given dialogues alone, so that what the schedule does is not taken
for what the answers do. Every arm leaves one JSON file, so that a run goes on where it was stopped. The last line is one JSON
object.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.fusion import rounds
from benchmarks.fusion.seed import Seed
from benchmarks.fusion.table import Results, can_show, difference, power, print_table, put_difference
from benchmarks.fusion.units import read_results, run_arms

WORLD = "B"
BASES = ["sft", "oracle", "joint"]
MAIN_ARMS = ("restarts", "rounds", "rounds_reverse_kl", "long_joint", "long_rounds")
WORDINGS = (("", "known"), ("new_", "new"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, `rounds` and `restarts`: no intervals")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", default=",".join(MAIN_ARMS), help=f"out of {', '.join(rounds.ARMS)}")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_fusion"))
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    seeds, out = 1 if arguments.quick else arguments.seeds, arguments.out
    wanted = ["restarts", "rounds"] if arguments.quick else arguments.arms.split(",")
    for arm in wanted:
        if arm not in rounds.ARMS:
            parser.error(f"found arm {arm!r}, expected some of {', '.join(rounds.ARMS)}")
    for number in range(seeds):
        run_arms(out, WORLD, number, BASES, partial(Seed, WORLD, number, out))
        run_arms(out, WORLD, number, wanted, partial(rounds.RoundsSeed, WORLD, number, out))
    results = read_results(out, WORLD, seeds, [*BASES, *wanted])
    print_table(WORLD, results, [*BASES, *wanted])
    print_against_joint(results, wanted)
    print(json.dumps(summary(results, wanted)))


def base_of(arm: str) -> str:
    """Joint fusion of as many steps."""
    return "long_joint" if arm.startswith("long_") else "joint"


def print_against_joint(results: Results, arms: list[str]) -> None:
    """Each arm minus joint fusion of as many steps."""
    print("\n| arm minus joint fusion of as many steps | known bits | known right | new bits | new right |")
    print("|---|---|---|---|---|")
    for arm in arms:
        if arm == base_of(arm):
            continue
        cells = []
        for _, wording in WORDINGS:
            change = difference(results, arm, base_of(arm), wording)
            if change is not None:
                cells += [
                    _shown(change["difference"], change["interval"], "+.3f"),
                    _shown(change["accuracy_difference"], change["accuracy_interval"], "+.0%"),
                ]
        print(f"| {arm} | " + " | ".join(cells) + " |")
    print(power(results))


def _shown(value: float, interval: tuple[float, float] | None, form: str) -> str:
    return f"{value:{form}}" + (f" [{interval[0]:{form}}, {interval[1]:{form}}]" if interval else "")


def summary(results: Results, arms: list[str]) -> dict[str, Any]:
    """The JSON object: `rounds` and every other arm minus joint fusion of as many steps; what was not measured is None."""
    oracle = difference(results, "oracle", "sft", "known")
    values: dict[str, Any] = {
        "seeds": len(results),
        "can_show": can_show(oracle),
    }
    for arm in dict.fromkeys(["rounds", *arms]):
        if arm == base_of(arm):
            continue
        for prefix, wording in WORDINGS:
            change = difference(results, arm, base_of(arm), wording)
            put_difference(values, f"{prefix}{arm}_minus_joint_bits", change)
            put_difference(values, f"{prefix}{arm}_minus_joint_accuracy", change, "accuracy_")
    return values


if __name__ == "__main__":
    main()
