"""What extraction costs: against plain prefill, against vLLM's prompt logprobs, against transformers; and its host side.

    python -m benchmarks.bench_extraction [--model models/smollm2-135m-instruct] [--dialogues FILE] [--limit 270] [--parts ...]

Each contender has an engine in a process of its own that works only in its turn; a ratio is the median of those of the
rounds. `extract` is the whole of it: engine, packing, compression, store, record.

- prefill: `extract_over_prefill` (tokens/s of extraction over those of plain prefill, same engine, same prompts), beside it
  `flop_limit` (what the floating-point operations allow for the share of rows scored);
- rivals: `extract_over_prompt_logprobs` (against vLLM's public path, flat and without detokenizing, writing the same store)
  and `over_transformers`;
- wide: `extract_over_prompt_logprobs_k64`;
- host: `host_rows_per_s_k10` and `_k64` of one core without a model, `bytes_per_row_k10`, `mean_kl_k10` (nats), and with
  `--wide-model` the bytes per row over a vocabulary of more than 65,536;
- head: what a head in the model's own dtype costs in accuracy, nats against a float32 head over the same body:
  `head_error_mean` (the mean over rows of sum(p * |difference|)) and `head_error_max` over all kept logprobs;
- memory: `peak_rss_gib` of the engine's process, and `rss_growth` from 200 dialogues to 2,000;
- actors: `two_actors_over_one`: two Ray actors on a core each against one on a core.

The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.extraction_runs import (
    SHARD_TOKENS,
    Contender,
    flop_limit,
    in_turns,
    make_tokens,
    median_ratio,
    of_capture,
    rates,
    say,
)

PARTS = ("prefill", "rivals", "wide", "host", "head", "memory", "actors")


def measure_prefill(folder: Path, base: Any, tokens: Any, rounds: int) -> dict[str, Any]:
    pooler = Contender("topk_pooler", base, folder)
    seconds = in_turns({"prefill": (pooler, "prefill"), "extract": (pooler, "extract")}, 4 * rounds)
    pooler.close()
    return {
        "extract_over_prefill": median_ratio(seconds["prefill"], seconds["extract"]),
        "flop_limit": round(flop_limit(base.pivot.model, tokens), 4),
        "rows_share": round(tokens.num_rows / tokens.num_tokens, 4),
        "tokens_per_s_prefill": rates(tokens, seconds),
    }


def measure_rivals(folder: Path, base: Any, tokens: Any, rounds: int) -> dict[str, Any]:
    pooler = Contender("topk_pooler", base, folder)
    reference = Contender("prompt_logprobs", of_capture(folder, base, "prompt_logprobs", 10), folder)
    plain = Contender("transformers", base, folder)
    others = {
        "extract": (pooler, "extract"), "prompt_logprobs": (reference, "extract"), "transformers": (plain, "extract"),
    }  # fmt: skip
    seconds = in_turns(others, rounds)
    for contender in (pooler, reference, plain):
        contender.close()
    return {
        "extract_over_prompt_logprobs": median_ratio(seconds["prompt_logprobs"], seconds["extract"]),
        "over_transformers": median_ratio(seconds["transformers"], seconds["extract"]),
        "tokens_per_s": rates(tokens, seconds),
    }


def measure_wide(folder: Path, base: Any, tokens: Any, rounds: int) -> dict[str, Any]:
    captures = ("topk_pooler", "prompt_logprobs")
    contenders = {name: Contender(name, of_capture(folder, base, name, 64), folder) for name in captures}
    seconds = in_turns({name: (contender, "extract") for name, contender in contenders.items()}, rounds)
    for contender in contenders.values():
        contender.close()
    return {
        "extract_over_prompt_logprobs_k64": median_ratio(seconds["prompt_logprobs"], seconds["topk_pooler"]),
        "tokens_per_s_k64": rates(tokens, seconds),
    }


def measure_host(folder: Path, base: Any, tokens: Any, wide: tuple[Any, Any] | None) -> dict[str, Any]:
    from benchmarks import extraction_store as store

    step, vocab_size = base.extraction.logprob_step, int(tokens.attributes["vocab_size"])
    everywhere = os.sched_getaffinity(0)
    found: dict[str, Any] = {}
    widest = captured(folder, of_capture(folder, base, "topk_pooler", 64))
    for k in (10, 64):
        rows = replace(widest, topk_ids=widest.topk_ids[:, :k], topk_logprobs=widest.topk_logprobs[:, :k])
        if k == 10:
            found["bytes_per_row_k10"] = round(
                store.bytes_per_row(rows, folder / "bytes", vocab_size=vocab_size, logprob_step=step), 2
            )
            found["mean_kl_k10"] = store.mean_kl(rows, step)
        os.sched_setaffinity(0, {min(everywhere)})
        found[f"host_rows_per_s_k{k}"] = round(
            store.host_rows_per_s(rows, folder / "host", vocab_size=vocab_size, logprob_step=step)
        )
        os.sched_setaffinity(0, everywhere)
        say(f"host, k={k}: {found[f'host_rows_per_s_k{k}']:,} rows/s of {len(rows):,} captured rows")
    if wide is not None:
        config, wide_tokens = wide
        rows, size = captured(folder, config), int(wide_tokens.attributes["vocab_size"])
        value = store.bytes_per_row(rows, folder / "bytes", vocab_size=size, logprob_step=step)
        found |= {"bytes_per_row_k10_wide": round(value, 2), "wide_vocabulary": size}
        found["mean_kl_k10_wide"] = store.mean_kl(rows, step)
    return found


def measure_head(folder: Path, base: Any) -> dict[str, Any]:
    from inference.self_check import compare_rows, look_up

    exact_head = base.pivot.engine.model_copy(update={"head_dtype": "float32"})
    wide = base.model_copy(update={"pivot": base.pivot.model_copy(update={"engine": exact_head})})
    exact, rows = captured(folder, wide), captured(folder, base)
    mean, largest = compare_rows(exact, look_up(rows, exact.topk_ids), rows.label_logprob)
    return {"head_error_mean": round(mean, 5), "head_error_max": round(largest, 4)}


def captured(folder: Path, config: Any) -> Any:
    from benchmarks import extraction_store as store

    contender, path = Contender("topk_pooler", config, folder), folder / "captured.npz"
    contender.call("captured", str(path))
    contender.close()
    return store.load_rows(path)


def measure_memory(folder: Path, model: str, dialogues_file: Path, engine: dict[str, Any]) -> dict[str, Any]:
    """Peak resident set of a process that extracts so many dialogues."""
    peaks = {}
    for limit in (200, 2000):
        config, _ = make_tokens(folder / f"memory.{limit}", model, dialogues_file, limit, engine)
        contender = Contender("topk_pooler", config, folder)
        contender.call("extract")
        peaks[limit] = contender.call("peak")["peak"]
        contender.close()
        say(f"{limit} dialogues: peak {peaks[limit] / 2**30:.3f} GiB")
    return {"peak_rss_gib": round(peaks[2000] / 2**30, 3), "rss_growth": round(peaks[2000] / peaks[200], 4)}


def measure_actors(folder: Path, base: Any, rounds: int) -> dict[str, Any]:
    from benchmarks import extraction_actors

    config = of_capture(folder, base, "topk_pooler", 9)
    # Enough shards that what is left for the last one does not decide.
    small = config.extraction.model_copy(update={"shard_tokens": base.extraction.shard_tokens // 8})
    seconds = extraction_actors.measure(config.model_copy(update={"extraction": small}), rounds, say)
    return {"two_actors_over_one": median_ratio(seconds[1], seconds[2])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m-instruct", help="folder of the teacher")
    parser.add_argument("--wide-model", help="folder of a teacher with a vocabulary above 65,536, for bytes per row")
    parser.add_argument("--dialogues", type=Path, default=Path("examples/dialogues/train.jsonl"), help="dialogue file")
    parser.add_argument("--limit", type=int, default=200, help="dialogues of it that the speed is measured on")
    parser.add_argument(
        "--rounds", type=int, default=3, help="turns per figure; four times as many against plain prefill"
    )
    parser.add_argument(
        "--engine",
        type=json.loads,
        default={},
        help="the teacher's engine section as JSON; on a GPU up to three engines live at once: "
        """'{"gpu_memory_utilization": 0.25}'""",
    )
    parser.add_argument("--shard-tokens", type=int, default=SHARD_TOKENS, help="dialogue tokens of a shard")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    arguments = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base, tokens = make_tokens(
            folder, arguments.model, arguments.dialogues, arguments.limit, arguments.engine, arguments.shard_tokens
        )
        say(f"{tokens.num_dialogues} dialogues, {tokens.num_tokens:,} tokens, {tokens.num_rows:,} rows")
        if "prefill" in arguments.parts:
            result |= measure_prefill(folder, base, tokens, arguments.rounds)
        if "rivals" in arguments.parts:
            result |= measure_rivals(folder, base, tokens, arguments.rounds)
        if "wide" in arguments.parts:
            result |= measure_wide(folder, base, tokens, arguments.rounds)
        if "host" in arguments.parts:
            wide = None
            if arguments.wide_model:
                wide = make_tokens(
                    folder / "wide", arguments.wide_model, arguments.dialogues, arguments.limit, arguments.engine
                )
            result |= measure_host(folder, base, tokens, wide)
        if "head" in arguments.parts:
            result |= measure_head(folder, base)
        if "memory" in arguments.parts:
            result |= measure_memory(folder, arguments.model, arguments.dialogues, arguments.engine)
        if "actors" in arguments.parts:
            result |= measure_actors(folder, base, arguments.rounds)
        result |= {"model": arguments.model, "dialogues": tokens.num_dialogues, "tokens": tokens.num_tokens}
    print(json.dumps({**result, "cpus": os.cpu_count(), "machine": platform.processor() or platform.machine()}))


if __name__ == "__main__":
    main()
