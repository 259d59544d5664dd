"""What alignment costs, on one core: spans alone, the whole stage with its stores, the released mode's warping.

Process time; the stage runs in processes of its own that get finished stores, so that their peak memory is their own:
one counts and maps the vocabularies, one aligns, as a worker on Ray does. Both work on a small store first, so that compiled
code is loaded when time counts; what a process needs that maps this pair alone is measured in one more. Real tokens and rows
repeated up to the wanted number.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from alignment import align_released, stage
from alignment.recipe import recipe
from alignment.rows.shard_alignment import AlignmentInputs, ShardAligner, ShardCounter
from alignment.tokens.cooccurrence import merge_counts
from alignment.tokens.token_alignment import align_spans, both_target_rows
from fusechat.config import RunConfig
from fusechat.storage import artifact
from fusechat.storage.contracts import id_dtype
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens import Tokens
from fusechat.storage.tokens_reader import TokensReader
from fusechat.text.dialogues import Dialogue

from .peak_memory import peak_bytes

ROUNDS = 3
WARM_TOKENS = 20_000
Side = tuple[Any, Tokens]
"""Tokenizer and tokens."""


def repeated(tokens: Tokens, times: int) -> Tokens:
    """The same dialogues again and again."""
    offsets = (tokens.offsets[:-1] + np.arange(times)[:, None] * tokens.num_tokens).ravel()
    return Tokens.of_contents(
        np.tile(tokens.token_ids, times), np.tile(tokens.is_scored, times), np.tile(tokens.span, (times, 1)),
        np.append(offsets, times * tokens.num_tokens), tokens.attributes,
    )  # fmt: skip


def seconds(work: Callable[[], Any]) -> float:
    """Process time of a call, the median of some."""
    found = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return statistics.median(found)


def span_speed(pivot: Tokens, source: Tokens, num_tokens: int = 1_000_000) -> float:
    """Pivot tokens per second and core: target rows and their alignment."""
    times = max(1, round(num_tokens / pivot.num_tokens))
    p, s = repeated(pivot, times), repeated(source, times)
    everything = range(p.num_dialogues)
    align_spans(*both_target_rows(p, s, everything))  # compiles
    return p.num_tokens / seconds(lambda: align_spans(*both_target_rows(p, s, everything)))


def released_speed(pivot_tokenizer: Any, source_tokenizer: Any, dialogues: list[Dialogue]) -> float:
    """Pivot tokens per second of the warping on texts of 1,000 pivot tokens, costs of all pairs of texts included."""
    text = "\n".join(message.content for dialogue in dialogues for message in dialogue.messages)
    ids = pivot_tokenizer.encode(text, add_special_tokens=False)
    starts = range(0, min(len(ids) - 1000, 10_000), 1000)
    pairs = []
    for one in (pivot_tokenizer.decode(ids[i : i + 1000]) for i in starts):
        sides = []
        for tokenizer in (pivot_tokenizer, source_tokenizer):
            pieces = tokenizer.encode(one, add_special_tokens=False)
            sides.append([tokenizer.decode([i]) for i in pieces])
        pairs.append(sides)
    align_released(*pairs[0])
    return sum(len(pair[0]) for pair in pairs) / seconds(lambda: [align_released(*pair) for pair in pairs])


def stage_speed(pivot: Side, source: Side, rows: dict[str, np.ndarray], num_tokens: int) -> dict[str, float]:
    """Seconds, tokens and peak memory of the stage on stores of about `num_tokens` pivot tokens."""
    with tempfile.TemporaryDirectory() as folder:
        for name, size in (("warm", WARM_TOKENS), ("real", num_tokens)):
            make_stores(Path(folder) / name, pivot[1], source[1], rows, size)
        mapped, aligned = (in_own_process(folder, part, "warm", "real") for part in PARTS)
        mapped["map_again_peak_rss_gib"] = mapped["map_peak_rss_gib"]
        mapped["map_peak_rss_gib"] = in_own_process(folder, "map", "real")["map_peak_rss_gib"]
    return {**mapped, **aligned, "seconds": mapped["count_seconds"] + aligned["align_seconds"]}


def in_own_process(folder: str, part: str, *stores: str) -> dict[str, float]:
    """What a part of the stage gives on the last of some stores, one after the other."""
    command = [sys.executable, "-m", "benchmarks.alignment_speed", folder, part, *stores]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(f"{part} in a process of its own failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def stage_config(folder: Path, pivot: str, source: str) -> RunConfig:
    """A run over a pivot and a source, by their folders, whose stores stand in a folder."""
    sections = {"run": {"output": str(folder)}, "dialogues": {"train": ["none"]}}
    names = {"pivot": {"name": "pivot", "model": pivot}, "sources": [{"name": "source", "model": source}]}
    return RunConfig.model_validate({**sections, **names})


def made_config(folder: Path) -> RunConfig:
    """The run whose stores were made in a folder."""
    return stage_config(
        folder, *(TokensReader(f"{folder}/tokens/{name}").attributes["model"] for name in ("pivot", "source"))
    )


def make_stores(folder: Path, pivot: Tokens, source: Tokens, rows: dict[str, np.ndarray], num_tokens: int) -> None:
    """Tokens artifacts and a logprobs store of repeated dialogues."""
    config = stage_config(folder, pivot.attributes["model"], source.attributes["model"])
    times = max(1, round(num_tokens / pivot.num_tokens))
    for name, tokens in (("pivot", pivot), ("source", source)):
        repeated(tokens, times).write(config.tokens_url(name))
        artifact.claim(config.tokens_url(name), "tokens", settings={"tokens": times}, parents={}).finish({})
    claim = artifact.claim(config.logprobs_url("source"), "logprobs", settings={"tokens": times}, parents={})
    vocab_size = int(source.attributes["vocab_size"])
    store = RowStore.create(
        claim.url, "logprobs", repeated(source, times).layout(config.extraction.shard_tokens), k=config.extraction.k, vocab_size=vocab_size,
        logprob_step=config.extraction.logprob_step, settings={},
    )  # fmt: skip
    for shard in range(store.layout.num_shards):
        block = store.layout.rows(shard)
        place = np.arange(block.start, block.stop) % source.num_rows
        arrays = {name: array[place] for name, array in rows.items()}
        store.write_shard(shard, {**arrays, "topk_ids": arrays["topk_ids"].astype(id_dtype(vocab_size))})
    claim.finish({})


def claimed(config: RunConfig) -> tuple[AlignmentInputs, artifact.Claim, RowStore]:
    """What the workers are told, and the aligned store that they fill."""
    inputs = stage.alignment_inputs(config.layout, config.pivot, config.sources[0], config.alignment)
    return inputs, *stage.claim_store(
        config.layout, inputs, recipe("pivot", "source", config.alignment, config.extraction)
    )


def count_and_map(config: RunConfig) -> dict[str, float]:
    """Counting, and the map of the vocabularies with the loading of both tokenizers."""
    begun = time.process_time()
    inputs, _, store = claimed(config)
    tokenizers = inputs.open_tokenizers()
    opened = time.process_time()
    counter = ShardCounter(inputs)
    counter.start()
    counts = merge_counts(counter.run_unit(shard)["counts"] for shard in range(store.layout.num_shards))
    counted = time.process_time()
    stage.map_vocabularies(inputs, counts, tokenizers)
    return {
        "count_seconds": counted - opened, "map_seconds": time.process_time() - counted + opened - begun,
        "map_peak_rss_gib": peak_bytes() / 2**30,
    }  # fmt: skip


def align(config: RunConfig) -> dict[str, float]:
    """Reading, projection and writing."""
    begun = time.process_time()
    inputs, claim, store = claimed(config)
    aligner = ShardAligner(inputs)
    aligner.start()
    tokens = sum(aligner.run_unit(shard)["tokens"] for shard in store.missing_shards())
    stage.finish(claim, store)
    return {"tokens": tokens, "align_seconds": time.process_time() - begun, "worker_peak_rss_gib": peak_bytes() / 2**30}


PARTS = {"map": count_and_map, "align": align}


def growth(points: list[dict[str, float]]) -> float:
    """Exponent b of seconds ~ tokens**b, by least squares on logarithms."""
    x, y = (np.log([point[key] for point in points]) for key in ("tokens", "seconds"))
    return float(np.polyfit(x, y, 1)[0])


if __name__ == "__main__":
    for name in sys.argv[3:]:
        print(json.dumps(PARTS[sys.argv[2]](made_config(Path(sys.argv[1]) / name))))
