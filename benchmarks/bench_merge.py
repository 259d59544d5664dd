"""What a merge costs: against mergekit on the same files, against copying them, and in memory.

    python -m benchmarks.bench_merge [--rounds 5] [--folder FOLDER] [--target-dtype float32] [--methods sce ties linear]

Makes a base (bfloat16) and five targets of SmolLM2-135M's shape, with updates of different sizes: float32 as training saves
them by default (540 MB each), or bfloat16 (270 MB). All runs find the files in the system's cache and follow each other in
turns; figures are ratios of medians.

- `*_over_mergekit`: whole processes, from start to exit, imports included on both sides. `*_over_mergekit_call`: the
  call alone, after the imports. mergekit computes in bfloat16, as the released configurations ask; we in float32.
- `sce_over_copy`: the call, against a loop that reads all inputs with safetensors and writes one output, both in one
  process that has done each once.
- Memory: peak resident set of a process that merges with SCE, less the largest tensor, GiB; and that of 30 layers over
  that of 10.

The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HIDDEN, INTERMEDIATE, KEYS = 576, 1536, 192
TARGETS = [f"t{j}" for j in range(1, 6)]
OURS: dict[str, dict[str, Any]] = {"sce": {"select_topk": 0.1}, "ties": {"density": 0.6, "weights": 0.2}, "linear": {}}
THEIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sce": ({"select_topk": 0.1}, {}),
    "ties": ({"normalize": True}, {"density": 0.6, "weight": 0.2}),
    "linear": ({"normalize": True}, {"weight": 1.0}),
}
"""Method -> shared parameters, parameters of each model; the released configurations' values."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns per figure")
    parser.add_argument(
        "--folder", type=Path, help="where the checkpoints are made and kept; default: a temporary folder"
    )
    parser.add_argument(
        "--target-dtype", choices=("float32", "bfloat16"), default="float32", help="of the targets' files"
    )
    parser.add_argument(
        "--layers",
        nargs=2,
        type=int,
        default=[10, 30],
        metavar=("FEW", "MANY"),
        help="of two sizes, for the growth of memory",
    )
    parser.add_argument("--vocabulary", type=int, default=49_152, help="of all checkpoints")
    parser.add_argument(
        "--methods", nargs="+", choices=OURS, default=list(OURS), help="that mergekit is asked for, too"
    )
    parser.add_argument("--run", nargs=3, metavar=("WHO", "METHOD", "LAYERS"), help=argparse.SUPPRESS)
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        who, method, layers = arguments.run
        print(json.dumps(run_once(arguments.folder, who, method, int(layers))))
    elif arguments.in_process:
        print(json.dumps(copy_figures(arguments.folder, arguments.layers[1], arguments.rounds)))
    elif arguments.folder:
        print(json.dumps(measure(arguments.folder / arguments.target_dtype, arguments)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(Path(folder), arguments)))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures; progress goes to standard error."""
    rounds, target_dtype, (few, many) = arguments.rounds, arguments.target_dtype, arguments.layers
    for layers in (few, many):
        if not (folder / str(layers) / TARGETS[-1] / "config.json").is_file():
            say(f"making a base and five targets of {layers} layers below {folder}")
            make_checkpoints(folder / str(layers), layers, arguments.vocabulary, target_dtype)
    figures: dict[str, Any] = {"target_dtype": target_dtype}
    for method in arguments.methods:
        child(folder, "ours", method, many)  # compiles, if no earlier run did, and warms the cache
        turns = [{who: child(folder, who, method, many) for who in ("ours", "mergekit")} for _ in range(rounds)]
        for figure, name in (("process_s", f"{method}_over_mergekit"), ("call_s", f"{method}_over_mergekit_call")):
            ours, theirs = (statistics.median(turn[who][figure] for turn in turns) for who in ("ours", "mergekit"))
            figures[name] = round(ours / theirs, 4)
            figures |= {f"{method}_{figure}": round(ours, 3), f"mergekit_{method}_{figure}": round(theirs, 3)}
            say(f"{name}: {ours:.2f} s / {theirs:.2f} s = {ours / theirs:.3f}")
    command = [sys.executable, "-m", "benchmarks.bench_merge", "--folder", str(folder), "--rounds", str(rounds)]
    command += ["--layers", str(few), str(many), "--in-process"]
    figures |= json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    peaks = {layers: child(folder, "ours", "sce", layers)["peak_rss"] for layers in (few, many)}
    figures["peak_rss_growth"] = round(peaks[many] / peaks[few], 4)
    figures["peak_rss_gib"] = round(peaks[many] / 2**30, 3)
    figures["peak_rss_over_largest_tensor_gib"] = round((peaks[many] - 2 * arguments.vocabulary * HIDDEN) / 2**30, 3)
    figures["cpus"], figures["machine"] = os.cpu_count(), cpu_name()
    return figures


def cpu_name() -> str:
    """As the system names it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def child(folder: Path, who: str, method: str, layers: int) -> dict[str, float]:
    """One merge in a process of its own: seconds of the process and of the call, peak resident bytes."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.bench_merge",
        "--folder",
        str(folder),
        "--run",
        who,
        method,
        str(layers),
    ]
    started = time.perf_counter()
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    return {"process_s": seconds, **json.loads(result.stdout.splitlines()[-1])}


def run_once(folder: Path, who: str, method: str, layers: int) -> dict[str, float]:
    """What a child does."""
    from benchmarks.peak_memory import peak_bytes

    merge = (ours if who == "ours" else mergekit)(folder / str(layers), method)
    started = time.perf_counter()
    merge()
    call = time.perf_counter() - started
    return {"call_s": call, "peak_rss": peak_bytes()}


def ours(folder: Path, method: str) -> Callable[[], Any]:
    from merge import merge_checkpoints

    out = folder / "ours"
    shutil.rmtree(out, ignore_errors=True)
    targets = {name: folder / name for name in TARGETS}
    return lambda: merge_checkpoints(
        method=method, base=folder / "base", targets=targets, out=out, parameters=OURS[method]
    )


def mergekit(folder: Path, method: str) -> Callable[[], Any]:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    out = folder / "mergekit"
    shutil.rmtree(out, ignore_errors=True)
    shared, each = THEIRS[method]
    settings = {
        "merge_method": method, "dtype": "bfloat16", "parameters": shared,
        "models": [{"model": str(folder / name), "parameters": each} for name in TARGETS],
    }  # fmt: skip
    if method != "linear":
        settings["base_model"] = str(folder / "base")
    config = MergeConfiguration.model_validate(settings)
    return lambda: run_merge(config, str(out), MergeOptions(copy_tokenizer=False, quiet=True))


def copy_figures(folder: Path, layers: int, rounds: int) -> dict[str, float]:
    """SCE against reading all inputs and writing one output, in turns in this process."""
    checkpoints = folder / str(layers)

    def merge() -> float:
        call = ours(checkpoints, "sce")
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    turns = [(merge(), copy(checkpoints)) for _ in range(rounds + 1)][1:]
    merged, copied = (statistics.median(times) for times in zip(*turns, strict=True))
    say(f"sce_over_copy: {merged:.2f} s / {copied:.2f} s = {merged / copied:.3f}")
    return {"sce_over_copy": round(merged / copied, 4), "sce_warm_call_s": round(merged, 3), "copy_s": round(copied, 3)}


def copy(folder: Path) -> float:
    """Seconds to read every tensor of all models and write one model."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    (folder / "copy.safetensors").unlink(missing_ok=True)
    started = time.perf_counter()
    held = {}
    for name in [*TARGETS, "base"]:
        with safe_open(folder / name / "model.safetensors", "pt") as file:
            for key in file.keys():  # noqa: SIM118 - safe_open is no dict
                held[key] = file.get_tensor(key).clone()  # without a copy, nothing is read: files are mapped
    save_file(held, folder / "copy.safetensors", {"format": "pt"})
    return time.perf_counter() - started


def make_checkpoints(folder: Path, layers: int, vocabulary: int, target_dtype: str) -> None:
    """A base and five targets of SmolLM2-135M's shape, whose updates are 0.25e-3, 0.5e-3 ... 4e-3 in size."""
    import torch
    from safetensors.torch import save_file

    shapes = {"model.embed_tokens.weight": (vocabulary, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(layers):
        for name, shape in {
            "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KEYS, HIDDEN), "self_attn.v_proj": (KEYS, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
            "mlp.up_proj": (INTERMEDIATE, HIDDEN), "mlp.down_proj": (HIDDEN, INTERMEDIATE),
            "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
        }.items():  # fmt: skip
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "head_dim": 64,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": layers, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": vocabulary, "tie_word_embeddings": True, "dtype": "bfloat16",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    base = {name: (torch.randn(shape, generator=generator) * 0.05).bfloat16() for name, shape in shapes.items()}
    for number, name in enumerate(["base", *TARGETS]):
        size = 0.0 if number == 0 else 1e-3 * 2.0 ** (number - 3)
        (folder / name).mkdir(parents=True, exist_ok=True)
        dtype = torch.bfloat16 if name == "base" else getattr(torch, target_dtype)
        weights = {
            key: (weight.float() + torch.randn(weight.shape, generator=generator) * size).to(dtype)
            for key, weight in base.items()
        }
        save_file(weights, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    main()
