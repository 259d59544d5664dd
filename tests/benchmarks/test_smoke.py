"""Every benchmark runs at its smallest size, as its docstring says, and prints one JSON object last.

The figures mean nothing at such sizes; that a command still runs after a rename does.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

COMMANDS = {
    "bench_trainer": (
        "--model {llama} --dialogues {train} --batch 1 --tokens 128 --rounds 1 --loss-tokens 16 --peaks-of fusion sft",
        "step_over_sft",
    ),
    "bench_extraction": ("--model {llama} --dialogues {train} --limit 4 --rounds 1 --parts prefill host", "extract_over_prefill"),
    "bench_pool": ("--actors 2 --phases throughput --shards 20", "driver_shards_per_s"),
    "bench_service": (
        "--model {llama} --dialogues 6 --words 2 --rounds 1 --clients 4 --idle-requests 5 --parts throughput idle",
        "service_over_direct",
    ),
    "bench_merge": ("--rounds 1 --layers 1 2 --vocabulary 512 --methods sce --folder {tmp}", "sce_over_mergekit"),
    "bench_scale": (
        "--sizes 60 --pivot {llama} --source {tmp}/gemma-3-270m --speed-dialogues 60 --speed-words 12 --workers 1 --folder {tmp}",
        "driver_rss_growth",
    ),
    "bench_alignment": ("--part quality --rules default --dialogues {train} --limit 4 --models {tmp} --out {tmp}/rows", ""),
}  # fmt: skip
"""Benchmark -> its smallest command, and a figure that its last line holds."""
PARTS = {
    "writing_speed": ("--model {llama} --prompts {train} --limit 4 --rounds 1 "
                      """--section {{"max_new_tokens":8,"chunk_prompts":2}} --engine {{"kv_cache_gib":0.05}}""", "write_over_vllm"),
    "generated_rows": ("--model {llama} --prompts {train} --limit 4 --rounds 1", "scoring_cost"),
}  # fmt: skip
"""The same of commands that are parts of a benchmark."""


def test_every_benchmark_has_a_smallest_command() -> None:
    benchmarks = {file.stem for file in (ROOT / "benchmarks").glob("bench_*.py")}
    assert benchmarks == {*COMMANDS, "bench_faults", "bench_fusion", "bench_rounds", "bench_writing"}, (
        "these train for minutes and have tests of their own"
    )


@pytest.mark.parametrize("name", [*COMMANDS, *PARTS])
def test_benchmark_runs(
    name: str, tiny_models: dict[str, Path], dialogue_files: dict[str, Path], tmp_path: Path
) -> None:
    options, figure = {**COMMANDS, **PARTS}[name]
    for called, model in (("smollm2-135m-instruct", "llama"), ("gemma-3-270m", "mixtral"), ("velan-moe", "mixtral")):
        (tmp_path / called).symlink_to(tiny_models[model])
    options = options.format(llama=tiny_models["llama"], train=dialogue_files["train"], tmp=tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *options.split()],
        cwd=ROOT, capture_output=True, text=True, timeout=500, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert not figure or math.isfinite(figures[figure])
