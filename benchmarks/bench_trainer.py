"""What a fusion step costs: against TRL's own SFT step, and against the dense construction of the released trainer.

    python -m benchmarks.bench_trainer [--model FOLDER] [--dialogues FILE] [--batch 4] [--tokens 512] [--rounds 3] [--only PART ...]

Every round trains two steps with each contender in turn, on the same batches of real dialogues with a real model's rows;
the second step is timed, forward, backward and optimizer; products are bfloat16, weights float32. Peak memory is that of
a process which trains with one contender alone. `sharded` is a step and its peak under FSDP2 on one rank, each contender in
processes of its own in turn; it is measured only where it is asked for. `loss` is the loss alone, for vocabularies of 32k to
262k. The last line is one JSON object. Runs on a CPU, or on a GPU where there is one. `python examples/prepare_models.py` makes the model.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, TrainerCallback

# This file is called like a package of ours, which it would hide as long as its own folder is searched first.
from benchmarks.trainer_contenders import CONTENDERS, DEVICE, STEPS, make_stores, make_trainer, open_dataset
from benchmarks.trainer_loss import measure_loss, now
from trainer.collator import FUSION_KEY, FusionCollator

ROOT = Path(__file__).parents[1]
PARTS = ("steps", "peaks", "reader", "loss")
SHARDED = "sharded"
VOCABULARIES = (32_000, 49_152, 128_256, 262_144)


class StepTimer(TrainerCallback):
    """Seconds of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(now() - self._began)


def measure_steps(stores: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Contender -> median seconds of a step, from alternating runs."""
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype="float32")
    trainers = {name: make_trainer(name, model, stores, arguments) for name in arguments.contenders}
    timers = {name: StepTimer() for name in arguments.contenders}
    for name, trainer in trainers.items():
        trainer.add_callback(timers[name])
    for _ in range(arguments.rounds):
        for name, trainer in trainers.items():
            trainer.train()
            trainer.optimizer = trainer.lr_scheduler = None
            print(f"{name}: {timers[name].seconds[-1]:.2f} s", file=sys.stderr, flush=True)
    return {name: float(np.median(timer.seconds[STEPS - 1 :: STEPS])) for name, timer in timers.items()}


def measure_alone(name: str, stores: Path, *launcher: str) -> dict[str, float]:
    """`seconds` of a step and bytes at the `peak` of a process that trains with this contender alone.

    Args:
        launcher: options of Python that start the process; none: it is started as it is.
    """
    own = ["-m", "benchmarks.bench_trainer", "--alone", name, "--stores", str(stores), *sys.argv[1:]]
    output = subprocess.run([sys.executable, *launcher, *own], check=True, stdout=subprocess.PIPE, text=True).stdout
    figures: dict[str, float] = json.loads(output.splitlines()[-1])
    return figures


def measure_sharded(stores: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Steps and peaks under FSDP2 on one rank: medians over processes of each contender, in turn.

    accelerate shards on accelerators alone; on a CPU the same commands run, and nothing is sharded.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.peaks_of}
    for _ in range(arguments.rounds):
        for name, own in runs.items():
            own.append(measure_alone(name, stores, *launcher))
            print(f"{name}, sharded: {own[-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
    seconds = {name: float(np.median([run["seconds"] for run in own])) for name, own in runs.items()}
    peaks = {name: max(run["peak"] for run in own) for name, own in runs.items()}
    return {
        "sharded_step_seconds": {name: round(value, 3) for name, value in seconds.items()},
        "sharded_peak_gib": {name: round(value / 2**30, 3) for name, value in peaks.items()},
        **_ratios("sharded_step", seconds), **_ratios("sharded_peak", peaks),
    }  # fmt: skip


def measure_reader(stores: Path, arguments: argparse.Namespace) -> float:
    """Rows that the collator reads and joins per second, in one thread."""
    data = open_dataset(stores, arguments.tokens)
    collate = FusionCollator(data, [np.array([number]) for number in range(len(data))], pad_token_id=0)
    began, rows = time.perf_counter(), 0
    for _ in range(5):
        for start in range(0, len(data), arguments.batch):
            batch = collate([{"unit": number} for number in range(start, min(start + arguments.batch, len(data)))])
            rows += len(batch[FUSION_KEY]["labels"])  # type: ignore[index]  # of a batch, only this entry is a dictionary
    return rows / (time.perf_counter() - began)


def _peak_bytes() -> int:
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    from benchmarks.peak_memory import peak_bytes

    return peak_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, default=ROOT / "models" / "smollm2-135m-instruct", help="Hugging Face folder"
    )
    parser.add_argument("--dialogues", type=Path, default=ROOT / "examples" / "dialogues" / "train.jsonl")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--k", type=int, default=10, help="entries of a row")
    parser.add_argument(
        "--contenders", choices=CONTENDERS, nargs="+", default=CONTENDERS, help="whose steps; fusion is among them"
    )
    parser.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES, help="of the loss alone")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--loss-tokens", type=int, default=1024, help="tokens of the table of the loss alone")
    parser.add_argument(
        "--only", choices=(*PARTS, SHARDED), nargs="+", default=PARTS, help="parts to measure; default: all but sharded"
    )
    parser.add_argument("--peaks-of", choices=CONTENDERS, nargs="+", default=CONTENDERS, help="whose peak memory")
    parser.add_argument("--alone", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--stores", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    if arguments.alone:
        model, timer = AutoModelForCausalLM.from_pretrained(arguments.model, dtype="float32"), StepTimer()
        trainer = make_trainer(arguments.alone, model, arguments.stores, arguments)
        trainer.add_callback(timer)
        trainer.train()
        sharded = torch.distributed.is_torchelastic_launched() and DEVICE.type == "cuda"
        trained: Any = trainer.model
        if sharded and not isinstance(next(trained.parameters()), DTensor):
            raise SystemExit("FSDP2 has sharded nothing; see FSDP2 in benchmarks/trainer_contenders.py")
        print(json.dumps({"seconds": timer.seconds[-1], "peak": _peak_bytes()}))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_stores(Path(folder), arguments)
        print(json.dumps(report(Path(folder), arguments)))


def report(stores: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure what is asked for; a table of the loss goes to standard error."""
    data = open_dataset(stores, arguments.tokens)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "model": arguments.model.name,
        "batch": arguments.batch,
        "tokens": arguments.tokens,
        "target_share": round(data.tokens.num_rows / data.tokens.num_tokens, 3),
    }
    if "steps" in arguments.only:
        seconds = measure_steps(stores, arguments)
        result["step_seconds"] = {name: round(value, 3) for name, value in seconds.items()}
        result |= _ratios("step", seconds)
        if {"sft", "fusion_off"} <= seconds.keys():
            result["sft_only_over_sft"] = round(seconds["fusion_off"] / seconds["sft"], 3)
            result["step_over_sft_only"] = round(seconds["fusion"] / seconds["fusion_off"], 3)
    if "peaks" in arguments.only:
        peaks = {name: measure_alone(name, stores)["peak"] for name in arguments.peaks_of}
        result["peak_gib"] = {name: round(value / 2**30, 3) for name, value in peaks.items()}
        result |= _ratios("peak", peaks)
    if SHARDED in arguments.only:
        result |= measure_sharded(stores, arguments)
    if "reader" in arguments.only:
        result["reader_rows_per_s"] = round(measure_reader(stores, arguments))
    if {"reader", "steps"} <= set(arguments.only):
        rows_per_second = (
            data.tokens.num_rows / data.tokens.num_tokens * arguments.batch * arguments.tokens / seconds["fusion"]
        )
        result["reader_over_step"] = round(result["reader_rows_per_s"] / rows_per_second, 1)
    if "loss" in arguments.only:
        width = transformers.AutoConfig.from_pretrained(arguments.model).get_text_config().hidden_size
        sizes = arguments.vocabularies
        result["loss"] = {str(v): _loss_of(v, width, arguments.loss_tokens, arguments.k) for v in sizes}
        result["loss_flops_over_sft"] = result["loss"][str(sizes[0])]["flops_over_sft"]
    return result


def _ratios(what: str, figures: dict[str, Any]) -> dict[str, float]:
    return {
        f"{what}_over_{other}": round(figures["fusion"] / figures[other], 3)
        for other in ("sft", "dense")
        if other in figures
    }


def _loss_of(vocab_size: int, width: int, tokens: int, k: int) -> dict[str, float]:
    figures = measure_loss(vocab_size, width, tokens, k)
    figures["flops_over_sft"] = figures["fusion_gflops"] / figures["sft_gflops"]
    figures["seconds_over_sft"] = figures["fusion_seconds"] / figures["sft_seconds"]
    figures["seconds_over_products"] = figures["fusion_seconds"] / figures["products_seconds"]
    figures = {name: round(value, 4) for name, value in figures.items()}
    print(f"loss alone, V={vocab_size}: {figures}", file=sys.stderr, flush=True)
    return figures


if __name__ == "__main__":
    main()
