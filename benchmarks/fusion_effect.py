# ruff: noqa: E402
"""Does fusion help? A controlled experiment: teachers know what the pivot does not, and dialogues are few.

    python benchmarks/fusion_effect.py [--seeds 5] [--jobs 2] [--draws 2] [--out runs/fusion_effect]

Each seed invents a world (fusion_effect_world.py), trains a pivot and two teachers in it (1.3M parameters, three
tokenizers, two templates), and runs the product's own stages on a few hundred dialogues: tokenization, alignment,
training, merging, and the evaluation's loss and greedy answers. Only the teachers' rows are read off a plain transformers
forward instead of a vLLM engine. Compared are, each with the same dialogues, steps and seed:

    sft          no rows                               target.NAME   the pivot's rows or NAME's, by MinCE (pairwise fusion)
    pivot_rows   the pivot's own rows alone            fused.METHOD  the two targets merged

Held-out questions are worded as training never words them. Bits per byte are expected values over the world's answers,
accuracy is the share of questions whose greedy answer is the most frequent word. Intervals are 95 %, bootstrap over
seeds, paired with `sft`. A seed that is finished is skipped. The last line is one JSON object.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM

from alignment import stage as alignment_stage
from benchmarks.fusion_effect_world import COMMON, SKILLS, ModelShape, World, make_model
from evaluation.answers import greedy_answers, is_exact, stop_ids
from evaluation.held_out_loss import dialogue_nats
from evaluation.intervals import MIN_DIALOGUES, ratio_interval
from fusechat.artifact import write_json
from fusechat.chat_template import load_tokenizer
from fusechat.config import CONTROL, RunConfig
from fusechat.tokenization import tokenize_prompt
from fusechat.tokenize_stage import prepare_dialogues, tokenize
from fusechat.tokens import Tokens
from inference import stage as inference_stage
from merge.checkpoint_merge import merge_checkpoints
from trainer import stage as trainer_stage

SHAPES = {
    "pivot": ModelShape(600, 160, 4, "marks", 160),
    SKILLS[0]: ModelShape(900, 160, 4, "lines", 260),
    SKILLS[1]: ModelShape(450, 160, 4, "marks", 260),
}
METHODS: dict[str, dict[str, Any]] = {"sce": {}, "varm": {}, "linear": {}}
SFT_WEIGHTS = (0.9, 0.5)
"""The published one, and one that gives the rows more say."""
TRAINING = {
    "num_train_epochs": 10, "per_device_train_batch_size": 32, "gradient_accumulation_steps": 1, "learning_rate": 1e-3,
    "gradient_checkpointing": False, "bf16": False, "save_strategy": "no",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="seeds at once, one thread each")
    parser.add_argument("--draws", type=int, default=2, help="dialogues per noun and skill")
    parser.add_argument("--out", type=Path, default=Path("runs/fusion_effect"))
    parser.add_argument("--seed", type=int, help="run this seed alone, and summarise nothing")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        run_seed(arguments.seed, arguments)
        return
    missing = [seed for seed in range(arguments.seeds) if not result_file(seed, arguments).exists()]
    for start in range(0, len(missing), arguments.jobs):
        running = [_start(seed, arguments) for seed in missing[start : start + arguments.jobs]]
        statuses = [process.wait() for process in running]
        if any(statuses):
            sys.exit("a seed failed")
    report([json.loads(result_file(seed, arguments).read_text()) for seed in range(arguments.seeds)])


def result_file(seed: int, arguments: argparse.Namespace) -> Path:
    """Where a finished seed leaves its figures."""
    return arguments.out / f"draws-{arguments.draws}" / f"seed-{seed}.json"


def _start(seed: int, arguments: argparse.Namespace) -> subprocess.Popen:
    command = [
        sys.executable,
        __file__,
        "--seed",
        str(seed),
        "--draws",
        str(arguments.draws),
        "--out",
        str(arguments.out),
    ]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})


def run_seed(seed: int, arguments: argparse.Namespace) -> None:
    """One world: everything from its models to the figures of every arm."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    file, started = result_file(seed, arguments), time.monotonic()
    folder, world = file.with_suffix(""), World(seed)
    for number, (name, shape) in enumerate(SHAPES.items()):
        if not (folder / name).exists():
            make_model(
                folder / name, World(seed), (COMMON, *([name] if name in SKILLS else [])), shape, seed * 10 + number
            )
            _say(seed, f"{name} is trained", started)
    _write_dialogues(folder / "train.jsonl", world.training(arguments.draws))
    _write_dialogues(folder / "held_out.jsonl", world.held_out())
    arms = train_arms(folder, seed)
    _say(seed, "targets are trained and merged", started)
    models = {"pivot": folder / "pivot", **{f"teacher.{name}": folder / name for name in SKILLS}, **arms}
    config = run_config(folder, seed, 0.9)
    figures = {name: measure(config, name.split(".")[1] if name.startswith("teacher") else "pivot", path, world)
               for name, path in models.items()}  # fmt: skip
    write_json(str(file), {"seed": seed, "seconds": round(time.monotonic() - started), "models": figures})
    _say(seed, "measured", started)


def _say(seed: int, text: str, started: float) -> None:
    print(f"seed {seed}: {text} ({time.monotonic() - started:.0f} s)", file=sys.stderr, flush=True)


def _write_dialogues(path: Path, dialogues: list[Any]) -> None:
    lines = [
        json.dumps(
            {"id": d.id, "kind": d.kind, "messages": [{"role": m.role, "content": m.content} for m in d.messages]}
        )
        for d in dialogues
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def run_config(folder: Path, seed: int, sft_weight: float, row_choice: str = "min_ce") -> RunConfig:
    """The run file of one kind of arm; all share the folder of tokens and rows."""
    name = f"{row_choice}-{sft_weight}"
    values = {
        "run": {"output": str(folder / name), "store": str(folder / "store"), "seed": seed},
        "pivot": {"name": "pivot", "model": str(folder / "pivot")},
        "sources": [{"name": skill, "model": str(folder / skill)} for skill in SKILLS],
        "dialogues": {
            "train": [str(folder / "train.jsonl")],
            "held_out": [str(folder / "held_out.jsonl")],
            "max_tokens": 128,
        },
        "training": {"sft_weight": sft_weight, "row_choice": row_choice, "tail": "renormalise", "trl": TRAINING},
    }
    return RunConfig.model_validate(values)


def train_arms(folder: Path, seed: int) -> dict[str, Path]:
    """All stages up to the merged models: arm -> model folder."""
    arms: dict[str, Path] = {}
    for weight in SFT_WEIGHTS:
        config = run_config(folder, seed, weight)
        prepare_dialogues(config)
        for model in config.models:
            tokenize(config, model.name)
            write_rows(config, model.name)
        targets = {}
        for skill in SKILLS:
            alignment_stage.run(config, skill)
            targets[skill] = Path(trainer_stage.run(config, skill).url)
        arms |= {f"target.{skill}@{weight}": path for skill, path in targets.items()}
        for method, parameters in METHODS.items():
            out = config.run.output / f"fused.{method}"
            shutil.rmtree(out, ignore_errors=True)
            merge_checkpoints(
                method=method, base=folder / "pivot", targets=targets, out=out, parameters=parameters,
                companions=targets[SKILLS[0]],
            )  # fmt: skip
            arms[f"fused.{method}@{weight}"] = out
        own = run_config(folder, seed, weight, "pivot")
        prepare_dialogues(own)
        arms[f"pivot_rows@{weight}"] = Path(trainer_stage.run(own, SKILLS[0]).url)
    arms["sft"] = Path(trainer_stage.run(run_config(folder, seed, SFT_WEIGHTS[0]), CONTROL).url)
    return arms


@torch.inference_mode()
def write_rows(config: RunConfig, name: str) -> None:
    """The rows of one model, off a plain forward, into the store that a teacher would write."""
    claim, store = inference_stage.claim_store(config, name)
    if claim.artifact is not None:
        return
    network = AutoModelForCausalLM.from_pretrained(config.model_named(name).model, dtype="float32")
    tokens = Tokens.read(config.tokens_url(name))
    for shard in store.missing_shards():
        parts = []
        for dialogue in store.plan.dialogues(shard):
            where = tokens.tokens_of(dialogue)
            ids = torch.from_numpy(tokens.token_ids[where].astype(np.int64))
            positions = torch.from_numpy(np.flatnonzero(tokens.is_target[where]))
            logprobs = network(ids[None], use_cache=False).logits[0, positions - 1].log_softmax(-1)
            top = logprobs.topk(config.extraction.k)
            label = logprobs.gather(1, ids[positions, None])[:, 0]
            parts.append((top.indices.numpy().astype(np.uint16), top.values.numpy(), label.numpy()))
        names = ("topk_ids", "topk_logprobs", "label_logprob")
        store.write_shard(
            shard, {name: np.concatenate(arrays) for name, arrays in zip(names, zip(*parts, strict=True), strict=True)}
        )
    inference_stage.finish(claim, store)


def measure(config: RunConfig, tokenizer_of: str, folder: Path, world: World) -> dict[str, Any]:
    """Lexicon -> expected nats and bytes over the held-out answers, right answers and questions."""
    network = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    tokenizer, template = load_tokenizer(config.model_named(tokenizer_of).model)
    tokens = Tokens.read(config.tokens_url(tokenizer_of, "held_out"))
    dialogues, weights = world.held_out(), world.held_out_weights()
    ids = [dialogue.id for dialogue in dialogues]
    nats = dialogue_nats(network, tokens, label=str(folder), dialogue_ids=ids, batch_tokens=4096)
    asked = np.flatnonzero(weights > 0.5).tolist()  # the most frequent answer of every question
    prompts = [tokenize_prompt(tokenizer, template, dialogues[number].messages[:1]) for number in asked]
    stops = stop_ids(network, tokens)
    answers = greedy_answers(network, prompts, stops=stops, max_new_tokens=12, batch_tokens=8192)
    found: dict[str, Any] = {}
    for lexicon in world.lexicons:
        mine = np.array([dialogue.kind == lexicon for dialogue in dialogues])
        sizes = np.array([len(dialogue.messages[1].content.encode()) for dialogue in dialogues])
        right = [
            is_exact(str(tokenizer.decode(answer or [])), dialogues[number].messages[1].content)
            for number, answer in zip(asked, answers, strict=True) if dialogues[number].kind == lexicon
        ]  # fmt: skip
        found[lexicon] = {
            "nats": float((weights * nats)[mine].sum()), "bytes": float((weights * sizes)[mine].sum()),
            "right": sum(right), "asked": len(right),
        }  # fmt: skip
    return found


def report(results: list[dict[str, Any]]) -> None:
    """A table per group of lexicons, then the JSON object."""
    if len(results) < MIN_DIALOGUES:
        print(
            f"\n{len(results)} seeds: too few for intervals, which need {MIN_DIALOGUES}; give --seeds {MIN_DIALOGUES} or more"
        )
    groups = {"skills": SKILLS, **{skill: (skill,) for skill in SKILLS}, "common": (COMMON,)}
    found: dict[str, Any] = {}
    for title, lexicons in groups.items():
        print(
            f"\n{title}: bits per byte, accuracy in per cent, {len(results)} seeds; difference to sft [95 % interval]"
        )
        for model in results[0]["models"]:
            found.setdefault(model, {})[title] = row = summary(results, model, lexicons)
            print(f"{model:22s} {row['bits_per_byte']:.4f} {_shown(row, 'bits_difference', '+.4f'):30s} "
                  f"{100 * row['accuracy']:5.1f} {_shown(row, 'accuracy_difference', '+.1f', 100)}")  # fmt: skip
    seconds = [result["seconds"] for result in results]
    print(json.dumps({"seeds": len(results), "seconds_per_seed": seconds, "models": found}))


def summary(results: list[dict[str, Any]], model: str, lexicons: tuple[str, ...]) -> dict[str, Any]:
    """Means over seeds, and differences to `sft` with intervals over seeds."""

    def of(name: str, key: str) -> np.ndarray:
        return np.array([sum(result["models"][name][lexicon][key] for lexicon in lexicons) for result in results])

    bits, sft_bits = of(model, "nats") / math.log(2), of("sft", "nats") / math.log(2)
    row = {
        "bits_per_byte": bits.sum() / of(model, "bytes").sum(), "accuracy": of(model, "right").sum() / of(model, "asked").sum(),
        "bits_difference": (bits - sft_bits).sum() / of(model, "bytes").sum(),
        "bits_interval": ratio_interval(bits - sft_bits, of(model, "bytes"), seed=0),
        "accuracy_difference": (of(model, "right") - of("sft", "right")).sum() / of(model, "asked").sum(),
        "accuracy_interval": ratio_interval(of(model, "right") - of("sft", "right"), of(model, "asked"), seed=0),
    }  # fmt: skip
    return {
        k: [round(float(x), 5) for x in v] if isinstance(v, tuple) else v and round(float(v), 5) for k, v in row.items()
    }


def _shown(row: dict[str, Any], key: str, form: str, factor: float = 1) -> str:
    numbers = [row[key], *(row[key.split("_")[0] + "_interval"] or [])]
    value, *interval = (f"{factor * number:{form}}" for number in numbers)
    return value + (f" [{', '.join(interval)}]" if interval else "")


if __name__ == "__main__":
    main()
