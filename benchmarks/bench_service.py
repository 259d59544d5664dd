"""What a service costs over an engine that is driven directly, and how soon a run that finds one has rows.

    python -m benchmarks.bench_service [--model models/smollm2-135m-instruct] [--dialogues 256] [--rounds 3] [--parts ...]

An engine has one core in both cases (`OMP_NUM_THREADS=1`, what Ray gives an actor that reserves one); door, proxy and clients
have the rest of the machine. Turns alternate; a ratio is the median of those of the rounds.

- throughput: `service_over_direct` (rows/s of 64 clients over HTTP in the binary form, `--at-once` dialogues a request, over
  those of the same dialogues given to the engine in one call); beside it what a busy machine does not change:
  `engine_cpu_over_direct` (CPU seconds of the service's engine over those of the other for the same rows) and `cpu_seconds` of each
  process of the service;
- idle: `p99_ms_idle` and `p50_ms_idle` of one short dialogue over HTTP, nothing else asked; `p99_ms_direct` beside it;
- attach: `start_seconds_attach`: from the start of the process of `fusechat extract` until its first shard of rows is written;
- memory: `memory_growth` over `--memory-requests` requests of 16 clients: resident memory of all of the service's processes at the
  end, over that after a tenth of them; `memory_growth_of` each. 20,000 requests are the claim; the default is fewer.

The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.service.asked import (
    cpu_seconds,
    processes,
    resident_mib,
    running,
    score_all,
    score_each,
    write_dialogues,
    write_run,
)
from benchmarks.service.direct import Dialogues, DirectEngine
from fusechat.models.model_limits import position_limit

PARTS = ("throughput", "idle", "attach", "memory")
K = 10
MAX_TOKENS = 1024
MEMORY_CLIENTS = 16
ATTACH_DIALOGUES = 16
"""Of a run whose first rows are waited for."""


def measure_throughput(address: str, direct: DirectEngine, dialogues: Dialogues, asked: Any) -> dict[str, Any]:
    """Rows a second by both ways, in turns."""
    ratios, rates, spent = [], [], []
    pids = processes() | {direct.pid: "direct"}
    for turn in range(asked.rounds + 1):
        before = cpu_seconds(pids)
        alone, rows = direct.score_all(dialogues)
        seconds, same = score_all(address, dialogues, clients=asked.clients, at_once=asked.at_once)
        assert rows == same, f"the service gave {same} rows, the engine {rows}"
        if turn:  # the first one warms both
            after = cpu_seconds(pids)
            spent.append({name: after[name] - before[name] for name in after})
            ratios.append(alone / seconds)
            rates.append((rows / seconds, rows / alone))
            say(f"throughput: service {rates[-1][0]:,.0f} rows/s, direct {rates[-1][1]:,.0f}: {ratios[-1]:.3f}")
    cpu = {name: round(statistics.median(one[name] for one in spent), 2) for name in spent[0]}
    service, engine = (statistics.median(column) for column in zip(*rates, strict=True))
    return {
        "service_over_direct": round(statistics.median(ratios), 3),
        "service_over_direct_turns": [round(ratio, 3) for ratio in ratios],
        "engine_cpu_over_direct": round(cpu["score"] / cpu["direct"], 3) if cpu["direct"] else None,
        "cpu_seconds": cpu,
        "rows_per_s": {"service": round(service), "direct": round(engine)},
    }


def measure_idle(address: str, direct: DirectEngine, dialogues: Dialogues, asked: Any) -> dict[str, Any]:
    """Milliseconds of one short dialogue."""
    ids = [dialogues[0][0][:40]] * asked.idle_requests
    marks = [np.arange(40) >= 24] * asked.idle_requests
    over_http, alone = score_each(address, (ids, marks)), direct.score_each((ids, marks))
    p50, p99 = np.percentile(over_http, (50, 99)) * 1000
    own50, own99 = np.percentile(alone, (50, 99)) * 1000
    say(f"idle: p50 {p50:.1f} ms, p99 {p99:.1f} ms over HTTP; {own50:.1f} and {own99:.1f} ms directly")
    values = {"p99_ms_idle": p99, "p50_ms_idle": p50, "p99_ms_direct": own99, "p50_ms_direct": own50}
    return {name: round(float(value), 1) for name, value in values.items()}


def measure_attach(run: Path, folder: Path, asked: Any) -> dict[str, Any]:
    """Seconds from the start of a process until its first shard is written."""
    seconds = []
    few = write_dialogues(folder / "few.jsonl", ATTACH_DIALOGUES, words=asked.words)
    for turn in range(asked.rounds):
        output = folder / f"attached-{turn}"
        command = [sys.executable, "-m", "fusechat"]
        options = ["-c", str(run), "--set", f"run.output={output}", "--set", f"dialogues.train=[{few}]"]
        subprocess.run([*command, "tokenize", *options], check=True, capture_output=True)
        log, started = output / "logs/extract.asked.jsonl", time.perf_counter()
        process = subprocess.Popen([*command, "extract", *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while not log.exists() and process.poll() is None:
            time.sleep(0.005)
        seconds.append(time.perf_counter() - started)
        _, errors = process.communicate()
        assert process.returncode == 0 and b"the service fusechat" in errors, errors.decode()
        say(f"attach: first rows after {seconds[-1]:.2f} s")
    return {
        "start_seconds_attach": round(statistics.median(seconds), 2),
        "attach_turns": [round(one, 2) for one in seconds],
    }


def measure_memory(address: str, dialogues: Dialogues, asked: Any) -> dict[str, Any]:
    """Growth of resident memory over many requests."""
    short = ([ids[:40] for ids in dialogues[0]], [np.arange(40) >= 24] * len(dialogues[0]))
    done, early, sizes = 0, dict[str, float](), dict[str, float]()
    for mark in (max(1, asked.memory_requests // 10), asked.memory_requests):
        while done < mark:
            score_all(address, short, clients=MEMORY_CLIENTS, at_once=1)
            done += len(short[0])
        sizes = resident_mib()
        say(f"memory: after {done:,} requests {', '.join(f'{name} {size:.0f}' for name, size in sizes.items())} MiB")
        early = early or sizes
    return {
        "memory_requests": done,
        "memory_growth": round(sum(sizes.values()) / sum(early.values()), 4),
        "memory_growth_of": {name: round(sizes[name] / early[name], 4) for name in sizes},
    }


def tokenized(model: str, path: Path) -> Dialogues:
    """The dialogues as the model reads them."""
    import fusechat

    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    examples = fusechat.tokenize(model, rows)
    return [one.token_ids for one in examples], [one.is_scored for one in examples]


def say(text: str) -> None:
    """One line for whoever watches."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """The command; gives what its last line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--dialogues", type=int, default=256, help="dialogues of a turn")
    parser.add_argument("--words", type=int, default=14, help="things that a dialogue lists")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--at-once", type=int, default=4, help="dialogues of a request")
    parser.add_argument("--idle-requests", type=int, default=200)
    parser.add_argument("--memory-requests", type=int, default=2000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    asked = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    engine = {"kv_cache_gib": 0.25}
    figures: dict[str, Any] = {"model": Path(asked.model).name, "cpus": os.cpu_count(), "machine": platform.processor()}
    max_tokens = min(MAX_TOKENS, position_limit(Path(asked.model)) or MAX_TOKENS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = write_dialogues(folder / "dialogues.jsonl", asked.dialogues, words=asked.words)
        run = write_run(folder, asked.model, file, k=K, max_tokens=max_tokens, engine=engine)
        dialogues = tokenized(asked.model, file)
        figures |= {"tokens": sum(map(len, dialogues[0])), "rows": int(sum(of.sum() for of in dialogues[1]))}
        with running(run, folder) as address:
            if {"throughput", "idle"} & set(asked.parts):
                direct = DirectEngine(asked.model, k=K, max_tokens=max_tokens, engine=engine)
                if "throughput" in asked.parts:
                    figures |= measure_throughput(address, direct, dialogues, asked)
                if "idle" in asked.parts:
                    figures |= measure_idle(address, direct, dialogues, asked)
                direct.close()
            if "attach" in asked.parts:
                figures |= measure_attach(run, folder, asked)
            if "memory" in asked.parts:
                figures |= measure_memory(address, dialogues, asked)
    figures["load"] = [round(value, 1) for value in os.getloadavg()]
    print(json.dumps(figures))
    return figures


if __name__ == "__main__":
    main()
