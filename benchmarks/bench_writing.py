"""Do answers that the sources write teach more than given ones, and do their rows add to that?

    python -m benchmarks.bench_writing [--quick] [--worlds B,Bn,L] [--seeds 5] [--jobs 2] [--out runs/bench_fusion]

The worlds, models, given dialogues and arms without written answers are those of `bench_fusion.py`, and so are its files: what
it has finished is not trained again. In every seed the sources answer the training prompts, greedily and sampled
(fusion/written.py); students learn from given dialogues, from written ones and from both, with the rule's rows and without, in
equal numbers of steps. Every arm leaves one JSON file, so that a run goes on where it was stopped. Wordings that training
showed and new ones are reported apart; intervals are 95 % over seeds, paired. What each rule of the stage `write` would keep of
four samples of every source is counted too (fusion/keeping.py), and the stage's speed against vLLM's own `LLM.generate` is measured
with a real model (writing_speed.py). The last line is one JSON object.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import writing_speed
from benchmarks.fusion.keeping import RULES_TRIED, Keeping
from benchmarks.fusion.seed import Seed
from benchmarks.fusion.table import Results, difference, print_table, put_difference
from benchmarks.fusion.units import read_results, result_file, run_all, run_arms
from benchmarks.fusion.worlds import WORLDS
from benchmarks.fusion.written import ARMS, HOWS, WrittenSeed

GIVEN_ARMS = ["sft", "joint"]
"""Given dialogues alone, without rows and with the rule's: arms of `bench_fusion.py`."""
KEEPING = "keeping"
"""The file of what each rule of the stage `write` keeps in a seed."""
DATA_ARMS = {
    "written_sft": "written", "written_rows": "written_rows", "given_written_sft": "given_written",
    "given_written_rows": "given_written_rows",
}  # fmt: skip
"""Name in the JSON object -> arm without its ending; greedy answers, where the name does not end in `_sampled`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="world B, 3 seeds, greedy answers")
    parser.add_argument("--worlds", default="B,Bn,L")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_fusion"))
    parser.add_argument(
        "--speed-model", type=Path, default=Path("models/smollm2-135m-instruct"), help="folder of a writer"
    )
    parser.add_argument("--report", action="store_true", help="run nothing: tables of what is finished")
    parser.add_argument("--only", help="WORLD:SEED: run this one alone, and summarise nothing")
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    written = [arm for arm in ARMS if not arguments.quick or arm.endswith(".greedy")]
    out = arguments.out
    if arguments.only:
        world, seed = arguments.only.split(":")
        torch.set_num_threads(1)
        run_arms(out, world, int(seed), GIVEN_ARMS, lambda: Seed(world, int(seed), out))
        run_arms(out, world, int(seed), [KEEPING], lambda: Keeping(world, int(seed), out))
        run_arms(out, world, int(seed), written, lambda: WrittenSeed(world, int(seed), out))
        return
    worlds, seeds = (["B"], 3) if arguments.quick else (arguments.worlds.split(","), arguments.seeds)
    for world in worlds:
        if world not in WORLDS:
            parser.error(f"found world {world!r}, expected some of {', '.join(WORLDS)}")
    options = ["--out", str(out), *(["--quick"] if arguments.quick else [])]
    units = [f"{world}:{seed}" for world in worlds for seed in range(seeds)]
    run_all("benchmarks.bench_writing", [] if arguments.report else units, options, arguments.jobs)
    results: dict[str, Results] = {}
    for world in worlds:
        results[world] = read_results(out, world, seeds, [*GIVEN_ARMS, *written])
        print_table(world, results[world], [*GIVEN_ARMS, *written])
        print(right_answers(out, world, seeds))
    rules = {world: kept_by_rules(out, world, seeds) for world in worlds}
    print_rules(rules)
    print(json.dumps({**summary(results), "rules": rules, **speed(arguments)}))


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `writing_speed.py` measures, once; `write_over_vllm` is None where it was not."""
    file, model = arguments.out / "results" / "writing_speed.json", arguments.speed_model
    if not file.exists() and not arguments.report:
        if model.is_dir():
            size: dict[str, Any] = {"limit": 32, "rounds": 3} if arguments.quick else {}
            file.write_text(json.dumps(writing_speed.measure(str(model), **size)) + "\n")
        else:
            print(f"write_over_vllm: no model stands in {model} (examples/prepare_models.py makes it): not measured")
    values: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"write_over_vllm": None}
    return values


def right_answers(out: Path, world: str, seeds: int) -> str:
    """What the sources wrote, in one line: answers on the skills that ended, are right, and are a right word at all."""
    lines = []
    for how in HOWS:
        files = [result_file(out, world, seed, f"written.{how}") for seed in range(seeds)]
        counts = [json.loads(file.read_text())["answers"] for file in files if file.exists()]
        if counts:
            kept, right, words, prompts = (
                sum(c[name] for c in counts) for name in ("kept", "right", "words", "prompts")
            )
            lines.append(
                f"{how}: {kept} of {prompts} ended, {right / prompts:.0%} right, {words / prompts:.0%} any right word"
            )
    return f"written answers in {world}: " + "; ".join(lines)


def kept_by_rules(out: Path, world: str, seeds: int) -> dict[str, dict[str, float]]:
    """Rule -> `kept`, the share of prompts about the skills that it keeps an answer to, and of these answers the shares that are
    the most frequent word (`right`) and a right word at all (`words`)."""
    files = [result_file(out, world, seed, KEEPING) for seed in range(seeds)]
    counts = [json.loads(file.read_text())["rules"] for file in files if file.exists()]
    shares = {}
    for rule in RULES_TRIED if counts else ():
        prompts, kept, right, words = (
            sum(c[rule][name] for c in counts) for name in ("prompts", "kept", "right", "words")
        )
        shares[rule] = {
            "kept": round(kept / prompts, 4), "right": round(right / max(kept, 1), 4), "words": round(words / max(kept, 1), 4),
        }  # fmt: skip
    return shares


def print_rules(rules: dict[str, dict[str, dict[str, float]]]) -> None:
    """What each rule keeps of four samples of every source."""
    print("\n| world | rule | prompts with a kept answer | right | any right word |\n|---|---|---|---|---|")
    for world, shares in rules.items():
        for rule, of in shares.items():
            print(f"| {world} | {rule} | {of['kept']:.0%} | {of['right']:.0%} | {of['words']:.0%} |")


def summary(worlds: dict[str, Results]) -> dict[str, Any]:
    """The JSON object: greedy answers, world B and known wordings, unless a key says otherwise (`_sampled`, `_L`, `new_`).

    `X_minus_sft_bits` (`_low`, `_high`), `X_accuracy` and `X_minus_sft_accuracy` of every X in `DATA_ARMS`, and of
    `given_rows`; `given_written_rows_minus_given_rows_bits` and `..._minus_given_written_sft_bits`: what written answers add to
    rows, and rows to written answers.
    """
    values: dict[str, Any] = {"seeds": {world: len(results) for world, results in worlds.items()}}
    for world, results in worlds.items():
        for prefix, wording in (("", "known"), ("new_", "new")):
            suffix = "" if world == "B" else f"_{world}"
            sft = difference(results, "sft", "sft", wording)
            values[f"{prefix}sft_accuracy{suffix}"] = sft and round(sft["accuracy"], 4)
            for name, arm in _named_arms().items():
                change = difference(results, arm, "sft", wording)
                if change is None and (suffix or name.endswith("_sampled")):
                    continue  # of what was not run, only the main figures are named
                put_difference(values, f"{prefix}{name}_minus_sft_bits{suffix}", change)
                values[f"{prefix}{name}_accuracy{suffix}"] = change and round(change["accuracy"], 4)
                put_difference(values, f"{prefix}{name}_minus_sft_accuracy{suffix}", change, "accuracy_")
            for base, arm in (("given_rows", "joint"), ("given_written_sft", "given_written.greedy")):
                both = difference(results, "given_written_rows.greedy", arm, wording)
                if both is not None:
                    put_difference(values, f"{prefix}given_written_rows_minus_{base}_bits{suffix}", both)
    return values


def _named_arms() -> dict[str, str]:
    """Name in the JSON object -> arm."""
    endings = {"greedy": "", "sampled": "_sampled"}
    arms = {f"{name}{endings[how]}": f"{arm}.{how}" for how in HOWS for name, arm in DATA_ARMS.items()}
    return {"given_rows": "joint", **arms}


if __name__ == "__main__":
    main()
