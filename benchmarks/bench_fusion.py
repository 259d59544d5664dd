"""Does fusion help? A controlled experiment whose positive control shows that it could see it.

    python -m benchmarks.bench_fusion [--quick] [--worlds B,Bn,L,N,S5,D] [--seeds 5] [--jobs 2] [--out runs/bench_fusion]
    python -m benchmarks.bench_fusion --real-text TRAIN.jsonl HELD_OUT.jsonl --pivot FOLDER --source FOLDER

Each seed invents a world (fusion/worlds.py), trains a pivot and sources in it (1.3M parameters, several tokenizers, two
templates), takes a few hundred dialogues through the product's own stages (tokenize, align), and trains one student per
arm (fusion/arms.py): the same dialogues, steps and seed. Every arm leaves one JSON file, so that a run goes on where it
was stopped. Label smoothing, which has no teacher, is the null control; rows of the world's exact distribution, the
oracle, are the positive one: where they do not beat SFT, the run says that it can show nothing. Wordings that training
showed and new ones are reported apart. The last line is one JSON object.
"""

import argparse
import json
import os
from pathlib import Path

import torch
import transformers

from benchmarks.fusion import real_text
from benchmarks.fusion.seed import Seed
from benchmarks.fusion.table import Results, power, print_table, summary
from benchmarks.fusion.units import read_results, run_all, run_arms
from benchmarks.fusion.worlds import SKILLS, WORLDS

BEST_MERGE = "from_control_0.7"
"""The merge of the rule's pairs that the JSON object reports."""
MAIN_ARMS = [
    "sft",
    "smoothing",
    "oracle",
    "joint",
    "published.sce",
    "trusted.linear",
    f"trusted.{BEST_MERGE}",
]
MERGES_AND_GATES = [
    "trusted.sce", "trusted.varm", "trusted.ties", "trusted.bounded_sum", "trusted.from_control", "trusted.from_control_0.7",
    "trusted.selected", "trusted.fisher", "trusted.fisher_matrix", "joint_soft", "joint_gap",
    "joint_first_sight",
]  # fmt: skip
OTHERS = [
    "joint_ungated", "joint_untrusted", "joint_published", "pivot_rows", "joint_reverse_kl", "joint_where_unsure",
    "joint_where_sure", "published.varm", "published.linear",
]  # fmt: skip
PAIRS = [f"{choice}.{skill}" for choice in ("published", "trusted") for skill in SKILLS]


def arms_of(world: str, which: str) -> list[str]:
    """The arms of a world, the ones that matter most first; `which` is `main`, `merges` (in world B) or `all`."""
    if world == "S5":
        arms = [*MAIN_ARMS[:4], "joint_without_bad", "joint_ungated", "trusted.linear"]
    else:
        arms = [*MAIN_ARMS]
    if which != "main" and world == "B":
        arms = [*MAIN_ARMS[:4], *PAIRS, *MAIN_ARMS[4:], *MERGES_AND_GATES]  # merges take the pairs that are trained
    if which == "all" and world == "B":
        arms += OTHERS
    if which == "all" and world in ("Bn", "L"):
        arms += ["joint_ungated", "joint_untrusted", "joint_published", "joint_soft", "joint_first_sight"]
    return list(dict.fromkeys(arms))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="world B, 3 seeds, the main arms")
    parser.add_argument("--worlds", default=",".join(WORLDS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_fusion"))
    parser.add_argument("--arms", choices=("main", "merges", "all"), default="all")
    parser.add_argument("--report", action="store_true", help="run nothing: tables of what is finished")
    parser.add_argument("--only", help="WORLD:SEED: run this one alone, and summarise nothing")
    parser.add_argument("--real-text", nargs=2, type=Path, metavar=("TRAIN", "HELD_OUT"))
    parser.add_argument("--pivot", help="model folder, with --real-text")
    parser.add_argument("--source", help="model folder, with --real-text")
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if arguments.quick:
        arguments.arms = "main"
    if arguments.only:
        world, seed = arguments.only.split(":")
        torch.set_num_threads(1)
        out, arms = arguments.out, arms_of(world, arguments.arms)
        run_arms(out, world, int(seed), arms, lambda: Seed(world, int(seed), out))
        return
    if arguments.real_text:
        real_text.run(arguments.out / "real_text", arguments.pivot, arguments.source, *arguments.real_text)
        return
    worlds, seeds = (["B"], 3) if arguments.quick else (arguments.worlds.split(","), arguments.seeds)
    for world in worlds:
        if world not in WORLDS:
            parser.error(f"found world {world!r}, expected some of {', '.join(WORLDS)}")
    units = [f"{world}:{seed}" for world in worlds for seed in range(seeds)]
    options = ["--out", str(arguments.out), "--arms", arguments.arms]
    run_all("benchmarks.bench_fusion", [] if arguments.report else units, options, arguments.jobs)
    report(arguments.out, worlds, seeds, arguments.arms)


def report(out: Path, worlds: list[str], seeds: int, which: str) -> None:
    """Tables of what is finished, then the JSON object."""
    results: dict[str, Results] = {}
    for world in worlds:
        results[world] = read_results(out, world, seeds, arms_of(world, which))
        print_table(world, results[world], arms_of(world, which))
        print(power(results[world]))
    print(json.dumps(summary(results, BEST_MERGE)))


if __name__ == "__main__":
    main()
