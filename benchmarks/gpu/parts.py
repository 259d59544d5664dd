"""What `python -m benchmarks.gpu` measures, a function per part: figures by their names, as plain values.

Every part runs in a process of its own, so that one that fails or is cut off takes nothing with it.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.extraction_runs import (
    HERE,
    Contender,
    flop_limit,
    in_turns,
    make_tokens,
    median_ratio,
    of_capture,
    rates,
    say,
)

from .shapes import make_model

DIALOGUES = HERE.parent / "examples/dialogues/train.jsonl"
DUMMY = {"load_format": "dummy"}


@dataclass(frozen=True)
class Bench:
    """What a part is given: a folder for models and stores, and the size of everything."""

    folder: Path
    size: str
    rounds: int

    @property
    def real(self) -> bool:
        return self.size == "real"

    def engine(self, share: float, **fields: Any) -> dict[str, Any]:
        """An engine section: weights are drawn, `share` of a GPU's memory (a tiny cache on a CPU)."""
        extra = {**DUMMY, **fields.pop("extra", {})}
        memory = {"gpu_memory_utilization": share} if torch.cuda.is_available() else {"kv_cache_gib": 0.05}
        steps = {} if self.real else {"max_num_batched_tokens": 256}
        return {**memory, **steps, **fields, "extra": extra}

    def work(self, name: str, engine: dict[str, Any]) -> tuple[Any, Any]:
        """(run, tokens) over a shape: some 400,000 tokens in shards of 131,072, or a handful of dialogues."""
        model = make_model(self.folder, name, self.size)
        limit, shard_tokens = (1000, 131_072) if self.real else (6, 1024)
        folder = self.folder / f"runs.{name}.{len(list(self.folder.glob('runs.*')))}"
        return make_tokens(folder, str(model), DIALOGUES, limit, engine, shard_tokens)


def equality(bench: Bench) -> dict[str, Any]:
    """The capture against a plain forward on this device, nats: as it is measured, and in float32, dense and experts."""
    from inference.capture.rows import concatenate_rows
    from inference.engine.engine import Engine
    from inference.self_check import TOLERANCES, check_form, compare_rows, reference_logprobs

    device = "cuda" if torch.cuda.is_available() else "cpu"
    result: dict[str, Any] = {}
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 256, length).astype(np.int32) for length in (300, 2, 77, 450)]
    marks = [np.arange(len(of_one)) > len(of_one) // 2 - 1 for of_one in ids]
    for name, dtype in (("dense", "bfloat16"), ("dense", "float32"), ("experts", "float32")):
        model = make_model(bench.folder, name, bench.size, dtype=dtype, weights=True)
        extra = {"enforce_eager": True} if dtype == "float32" else {}  # compiling takes a good part of a minute
        section = {**bench.engine(0.3), "extra": extra, "max_num_batched_tokens": 256}
        with Engine(str(model), k=10, max_tokens=512, section=section) as engine:
            rows = concatenate_rows(engine.score(ids, marks), 10)
            labels = np.concatenate([of_one[marked] for of_one, marked in zip(ids, marks, strict=True)])
            check_form(rows, labels, engine.vocab_size, name)
            runner = engine.info["model_runner"]
        expected = reference_logprobs(model, dtype, list(zip(ids, marks, strict=True)), rows.topk_ids, device=device)
        mean, largest = compare_rows(rows, *expected)
        result[f"equality_{name}_{dtype}"] = {"mean": round(mean, 6), "max": round(largest, 5), "runner": runner}
        bound = TOLERANCES[dtype]
        if not (mean <= bound.mean and largest <= bound.each):
            raise SystemExit(f"{name} in {dtype}: found {mean:.4g} and {largest:.4g} nats, expected at most {bound}")
    return {**result, "equality_ok": True}


def extract(bench: Bench) -> dict[str, Any]:
    """All of extraction over plain prefill on one engine, memory over the control run, and a step's profile."""
    base, tokens = bench.work("qwen2.5-7b", bench.engine(0.85))
    pooler = Contender("topk_pooler", base, bench.folder)
    seconds = in_turns({"prefill": (pooler, "prefill"), "extract": (pooler, "extract")}, bench.rounds)
    peaks = []
    for command in ("prefill", "extract"):
        pooler.call("device_peak")
        pooler.call(command)
        peaks.append(pooler.call("device_peak")["peak"])
    profile = pooler.call("profile")["profile"]
    pooler.close()
    return {
        "extract_over_prefill_gpu": median_ratio(seconds["prefill"], seconds["extract"]),
        "flop_limit": round(flop_limit(base.pivot.model, tokens), 4),
        "rows_share": round(tokens.num_rows / tokens.num_tokens, 4),
        "gpu_memory_over_control_gib": round((peaks[1] - peaks[0]) / 2**30, 3),
        "engine_start_seconds_cold": round(pooler.started["seconds"], 1),
        "model_runner": pooler.started["model_runner"],
        "steps_in_flight": pooler.started["steps_in_flight"],
        "tokens_per_s": rates(tokens, seconds),
        "profile": profile,
    }


def rivals(bench: Bench, k: int = 10) -> dict[str, Any]:
    """Against vLLM's prompt logprobs into the same store; and plain prefill on either engine, the two denominators."""
    base, tokens = bench.work("qwen2.5-7b", bench.engine(0.42))
    pooler = Contender("topk_pooler", of_capture(bench.folder, base, "topk_pooler", k), bench.folder)
    public = Contender("prompt_logprobs", of_capture(bench.folder, base, "prompt_logprobs", k), bench.folder)
    seconds = in_turns(
        {"prefill_pooling": (pooler, "prefill"), "extract": (pooler, "extract"),
         "prefill_generating": (public, "prefill"), "prompt_logprobs": (public, "extract")},
        bench.rounds,
    )  # fmt: skip
    pooler.close()
    public.close()
    end = "" if k == 10 else f"_k{k}"
    return {
        f"extract_over_prompt_logprobs_gpu{end}": median_ratio(seconds["prompt_logprobs"], seconds["extract"]),
        f"extract_over_prefill_rivals_gpu{end}": median_ratio(seconds["prefill_pooling"], seconds["extract"]),
        f"extract_over_prefill_generating_gpu{end}": median_ratio(seconds["prefill_generating"], seconds["extract"]),
        f"runners{end}": {"pooling": pooler.started["model_runner"], "generating": public.started["model_runner"]},
        f"tokens_per_s_rivals{end}": rates(tokens, seconds),
    }


def wide(bench: Bench) -> dict[str, Any]:
    """As `rivals`, at k = 64."""
    found = rivals(bench, 64)
    return {"extract_over_prefill_gpu_k64": found.pop("extract_over_prefill_rivals_gpu_k64"), **found}


def moe(bench: Bench) -> dict[str, Any]:
    """As `extract`, for a Mixture of Experts."""
    base, tokens = bench.work("mixtral-4b", bench.engine(0.85))
    pooler = Contender("topk_pooler", base, bench.folder)
    seconds = in_turns({"prefill": (pooler, "prefill"), "extract": (pooler, "extract")}, bench.rounds)
    pooler.close()
    return {
        "extract_over_prefill_moe_gpu": median_ratio(seconds["prefill"], seconds["extract"]),
        "tokens_per_s_moe": rates(tokens, seconds),
    }


def start(bench: Bench) -> dict[str, Any]:
    """Seconds of an engine's start behind one that left its compiled artifacts on this machine; without a self-check."""
    base, _ = bench.work("qwen2.5-7b", bench.engine(0.85))
    found = []
    for _ in range(2):
        contender = Contender("topk_pooler", base, bench.folder)
        contender.close()
        found.append(round(contender.started["seconds"], 1))
    return {"engine_start_seconds": found[-1], "engine_start_seconds_before": found[0]}


def variants(bench: Bench) -> dict[str, Any]:
    """What each choice is worth: the runner, steps in flight, the tokens of a step. Seconds of prefill and of extraction."""
    chosen: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
        "as it is": ({}, {}),
        "one step in flight": ({"extra": {"async_scheduling": False}}, {}),
        "the older runner": ({}, {"VLLM_USE_V2_MODEL_RUNNER": "0"}),
        "steps of four times the tokens": ({"max_num_batched_tokens": 8192 if bench.real else 1024}, {}),
    }
    result = {}
    for name, (fields, environment) in chosen.items():
        base, tokens = bench.work("qwen2.5-7b", bench.engine(0.85, **fields))
        contender = Contender("topk_pooler", base, bench.folder, environment=environment)
        seconds = in_turns({"prefill": (contender, "prefill"), "extract": (contender, "extract")}, 1)
        contender.close()
        result[name] = {"runner": contender.started["model_runner"], **rates(tokens, seconds)}
        say(f"{name}: {result[name]}")
    return {"tokens_per_s_variants": result}


def training(bench: Bench) -> dict[str, Any]:
    """A fusion step over TRL's own SFT step, and peaks, for a model of 1.2 billion, at k = 10 and k = 64."""
    result: dict[str, Any] = {}
    for k in (10, 64):
        found = _trainer(bench, "--only", "steps", "peaks", "--k", str(k))
        end = "" if k == 10 else f"_k{k}"
        result |= {
            f"{key}_over_sft_gpu{end}": found[f"{key}_over_sft"] for key in ("step", "peak")
        } | {f"step_seconds{end}": found["step_seconds"], f"peak_gib{end}": found["peak_gib"]}  # fmt: skip
    return result


def sharded(bench: Bench) -> dict[str, Any]:
    """A fusion step over TRL's own under FSDP2 on one rank, and peaks, as `training` does without it."""
    figures = _trainer(bench, "--only", "sharded")
    return {
        "step_over_sft_fsdp2_gpu": figures["sharded_step_over_sft"], "peak_over_sft_fsdp2_gpu": figures["sharded_peak_over_sft"],
        "step_seconds_fsdp2": figures["sharded_step_seconds"], "peak_gib_fsdp2": figures["sharded_peak_gib"],
    }  # fmt: skip


def loss(bench: Bench) -> dict[str, Any]:
    """The loss alone over the head's three products."""
    sizes = ("32000", "128256") if bench.real else ("512",)
    return {"loss": _trainer(bench, "--only", "loss", "--vocabularies", *sizes)["loss"]}


def _trainer(bench: Bench, *options: str) -> dict[str, Any]:
    """What `benchmarks.bench_trainer` says."""
    model = make_model(bench.folder, "llama-1.2b", bench.size, weights=True)
    size = (8, 1024, 8192) if bench.real else (2, 64, 64)
    command = [
        sys.executable, "-m", "benchmarks.bench_trainer", "--model", str(model), "--dialogues", str(DIALOGUES),
        "--batch", str(size[0]), "--tokens", str(size[1]), "--loss-tokens", str(size[2]), "--rounds", str(bench.rounds),
        "--contenders", "sft", "fusion", "--peaks-of", "sft", "fusion", "--gradient-checkpointing", *options,
    ]  # fmt: skip
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures


PARTS = {
    part.__name__: part for part in (equality, extract, training, rivals, moe, wide, start, sharded, variants, loss)
}  # fmt: skip
"""In order of worth; equality first, because the speed of wrong rows is of no interest."""
