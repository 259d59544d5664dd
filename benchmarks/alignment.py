# ruff: noqa: E402
"""What alignment costs, and how much it adds or loses.

    python benchmarks/alignment.py [--models FOLDER] [--dialogues FILE] [--rows N] [--tokens N] [--out FOLDER]

Quality: real rows of two models in both directions (a plain transformers forward, kept in --out), per rule, native
templates and the pivot's. Truth: a pivot vocabulary that lacks merges of the source's. Speed: one core, real tokens
repeated; process time, medians of rounds that alternate between the contenders. The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# This file is called like a package of ours, which it would hide as long as its own folder is searched first.
sys.path[0] = str(Path(__file__).parents[1])

import numpy as np

from alignment import align_released, stage
from alignment.projection import project_chain, project_map, source_rows
from alignment.quality import ShardFigures, measure_shard, summarise
from alignment.released_shard import project_shard
from alignment.shard_alignment import ShardAligner, count_dialogues, dialogue_tokens
from alignment.token_alignment import align_spans, target_rows
from alignment.vocabulary_file import Vocabularies, make_vocabularies, released_texts
from fusechat import artifact
from fusechat.chat_template import load_tokenizer
from fusechat.config import AlignmentSection, RunConfig
from fusechat.contracts import id_dtype
from fusechat.dialogues import Dialogue, read_dialogues
from fusechat.store import RowStore
from fusechat.tokenization import tokenize_dialogues
from fusechat.tokens import Tokens

K = 10
ROUNDS = 3
PAIR = ("smollm2-135m-instruct", "gemma-3-270m")
# For the base model, which has no template of its own; its BOS matters (see examples/templates).
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content }}<end_of_turn>\n{% endfor %}"
)
RULES = {
    "default": AlignmentSection(),
    "frequency": AlignmentSection(row_rule="map"),
    "min_edit": AlignmentSection(row_rule="map", vocabulary_rule="min_edit"),
    "exact": AlignmentSection(row_rule="map", vocabulary_rule="exact"),
    "released": AlignmentSection(token_rule="released", vocabulary_rule="released", row_rule="map"),
}


def tokens_of(folder: Path, dialogues: list[Dialogue], template: str | None = None) -> tuple[Any, Tokens]:
    """Tokenizer and tokens of dialogues, as the tokenize stage makes them."""
    own = (folder / "chat_template.jinja").exists()
    tokenizer, text = load_tokenizer(str(folder), template=template or (None if own else PLAIN_TEMPLATE))
    parts = list(tokenize_dialogues(tokenizer, text, dialogues))
    config = json.loads((folder / "config.json").read_text())
    attributes = {
        "model": str(folder), "revision": None, "template": text, "vocab_size": int(config["vocab_size"]),
        "tokenizer": str(folder), "dialogues_digest": "benchmark",
    }  # fmt: skip
    return tokenizer, Tokens(
        np.concatenate([part.token_ids for part in parts]), np.concatenate([part.is_target for part in parts]),
        np.concatenate([part.content_span for part in parts]), np.cumsum([0, *(len(part) for part in parts)]), attributes,
    )  # fmt: skip


def score(folder: Path, tokens: Tokens, cache: Path) -> dict[str, np.ndarray]:
    """Top-k rows of a model by a plain forward, kept in a file."""
    if not cache.exists():
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        parts = []
        for dialogue in range(tokens.num_dialogues):
            place = tokens.tokens_of(dialogue)
            ids = torch.tensor(tokens.token_ids[place].astype(np.int64))[None]
            targets = torch.tensor(np.flatnonzero(tokens.is_target[place]))
            with torch.no_grad():
                hidden = model.model(ids).last_hidden_state[0, targets - 1]
                logprobs = torch.log_softmax(model.lm_head(hidden).float(), -1)
            best, best_ids = logprobs.topk(K, -1)
            own = logprobs.gather(-1, ids[0, targets][:, None])[:, 0]
            parts.append((best_ids.numpy().astype(np.int32), best.numpy(), own.numpy()))
        names = ("topk_ids", "topk_logprobs", "label_logprob")
        np.savez(
            cache,
            **{name: np.concatenate(column) for name, column in zip(names, zip(*parts, strict=True), strict=True)},
        )
    return dict(np.load(cache))


def project(
    section: AlignmentSection, pivot: Tokens, source: Tokens, rows: dict[str, np.ndarray], vocabularies: Vocabularies
) -> ShardFigures:
    """Figures of all dialogues as one shard, by one rule."""
    everything = range(pivot.num_dialogues)
    p, s = target_rows(pivot, everything), target_rows(source, everything)
    spans, probs, tables = align_spans(p, s), source_rows(rows), vocabularies.tables
    if section.token_rule == "released":
        sides = [dialogue_tokens(tokens, everything) for tokens in (pivot, source)]
        found = project_shard(*sides, probs, rows["topk_logprobs"], vocabularies, K)
    elif section.row_rule == "map":
        found = project_map(p, spans, probs, tables.source_to_pivot, vocabularies.vocab_size, K)
    else:
        found = project_chain(p, s, spans, probs, tables, K)
    return measure_shard(p, s, spans, rows, found, tables)


def quality(models: Path, dialogues: list[Dialogue], out: Path, rules: list[str]) -> dict[str, dict[str, Any]]:
    """`source->pivot template rule` -> figures."""
    found: dict[str, dict[str, Any]] = {}
    for pivot_name, source_name in (PAIR, PAIR[::-1]):
        pivot_tokenizer, pivot = tokens_of(models / pivot_name, dialogues)
        for template in ("native", "pivot"):
            text = None if template == "native" else pivot.attributes["template"]
            source_tokenizer, source = tokens_of(models / source_name, dialogues, text)
            rows = score(models / source_name, source, out / f"{source_name}.{template}.{len(dialogues)}.npz")
            shape = (source.attributes["vocab_size"], pivot.attributes["vocab_size"])
            for rule, section in ((rule, RULES[rule]) for rule in rules):
                texts = (
                    released_texts(pivot_tokenizer, source_tokenizer, shape)
                    if section.token_rule == "released"
                    else None
                )
                counts = count_dialogues(pivot, source, range(pivot.num_dialogues), shape, texts)
                vocabularies = make_vocabularies(pivot_tokenizer, source_tokenizer, counts, section, texts)
                key = f"{source_name} -> {pivot_name}, {template} template, {rule}"
                found[key] = summarise(project(section, pivot, source, rows, vocabularies))
                print_figures(key, found[key])
    return found


def print_figures(key: str, figures: dict[str, Any]) -> None:
    print(f"{key}: {json.dumps(figures['kinds'])}, {figures['chained_rows']} chained")
    for name, part in {"all": figures, **figures["by_text"]}.items():
        shown = {
            k: part[k]
            for k in ("rows", "coverage", "mass_home", "bits_per_byte_lost_share", "label_bits_per_byte_lost_share")
        }
        print(f"  {name:<14}" + "  ".join(f"{k} {v}" for k, v in shown.items()), flush=True)


def repeated(tokens: Tokens, num_tokens: int) -> Tokens:
    """The same dialogues again and again, up to about a number of tokens."""
    times = max(1, round(num_tokens / tokens.num_tokens))
    offsets = (tokens.offsets[:-1] + np.arange(times)[:, None] * tokens.num_tokens).ravel()
    return Tokens(
        np.tile(tokens.token_ids, times), np.tile(tokens.is_target, times), np.tile(tokens.content_span, (times, 1)),
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


def span_speed(pivot: Tokens, source: Tokens) -> float:
    """Pivot tokens per second and core: target rows and their alignment."""
    p, s = repeated(pivot, 1_000_000), repeated(source, round(1e6 * source.num_tokens / pivot.num_tokens))
    everything = range(p.num_dialogues)
    align_spans(target_rows(p, everything), target_rows(s, everything))
    return p.num_tokens / seconds(lambda: align_spans(target_rows(p, everything), target_rows(s, everything)))


def make_stores(folder: Path, pivot: Tokens, source: Tokens, rows: dict[str, np.ndarray], num_tokens: int) -> RunConfig:
    """Tokens artifacts and a logprobs store of repeated dialogues."""
    config = RunConfig.model_validate(
        {
            "run": {"output": str(folder)}, "pivot": {"name": "pivot", "model": "pivot"},
            "sources": [{"name": "source", "model": "source"}], "dialogues": {"train": ["none"]}, "extraction": {"k": K},
        }
    )  # fmt: skip
    times = max(1, round(num_tokens / pivot.num_tokens))
    for name, tokens in (("pivot", pivot), ("source", source)):
        many = repeated(tokens, times * tokens.num_tokens)
        many.write(config.tokens_url(name))
        artifact.claim(config.tokens_url(name), "tokens", settings={"tokens": times}, parents={}).finish({})
    claim = artifact.claim(config.logprobs_url("source"), "logprobs", settings={"tokens": times}, parents={})
    many, vocab_size = repeated(source, times * source.num_tokens), int(source.attributes["vocab_size"])
    store = RowStore.create(
        claim.url, "logprobs", many.plan(config.extraction.shard_tokens), k=K, vocab_size=vocab_size,
        logprob_step=config.extraction.logprob_step, settings={},
    )  # fmt: skip
    for shard in range(store.plan.num_shards):
        block = store.plan.rows(shard)
        place = np.arange(block.start, block.stop) % source.num_rows
        arrays = {name: array[place] for name, array in rows.items()}
        store.write_shard(shard, {**arrays, "topk_ids": arrays["topk_ids"].astype(id_dtype(vocab_size))})
    claim.finish({})
    return config


def stage_seconds(config: RunConfig) -> tuple[float, int]:
    """Process time of counting, projection, reading and writing; tokens. Tokenizers and the vocabulary map stand apart."""
    start = time.process_time()
    pivot, source = (Tokens.read(config.tokens_url(name)) for name in ("pivot", "source"))
    shape = (int(source.attributes["vocab_size"]), int(pivot.attributes["vocab_size"]))
    plan = pivot.plan(config.extraction.shard_tokens)
    counts = stage.merge_counts(
        count_dialogues(pivot, source, plan.dialogues(i), shape) for i in range(plan.num_shards)
    )
    counted = time.process_time() - start
    claim, store = stage.claim_store(config, "source", counts=counts)
    start = time.process_time()
    aligner = ShardAligner(config.dump(), "source")
    aligner.start()
    for shard in store.missing_shards():
        aligner.run_shard(shard)
    stage.finish(claim, store)
    return counted + time.process_time() - start, pivot.num_tokens


def stage_in_process(
    folder: Path, models: Path, dialogues_file: Path, rows_file: Path, limit: int, num_tokens: int
) -> None:
    """One stage run in a process of its own; prints seconds, tokens and its peak memory."""
    dialogues = list(read_dialogues([str(dialogues_file)]))[:limit]
    pivot, source = tokens_of(models / PAIR[1], dialogues)[1], tokens_of(models / PAIR[0], dialogues)[1]
    config = make_stores(folder, pivot, source, dict(np.load(rows_file)), num_tokens)
    stage_seconds(config)  # compiles
    artifact.remove(config.aligned_url("source"))
    spent, tokens = stage_seconds(config)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": spent, "tokens": tokens, "peak_rss_gib": peak}))


def run_stage(arguments: argparse.Namespace, rows_file: Path, num_tokens: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, __file__, "--stage-in", folder, "--models", arguments.models, "--dialogues", arguments.dialogues,
            "--rows-file", str(rows_file), "--tokens", str(num_tokens), "--limit", str(arguments.limit),
        ]  # fmt: skip
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def released_speed(pivot_tokenizer: Any, source_tokenizer: Any, dialogues: list[Dialogue]) -> float:
    """Pivot tokens per second of the warping on texts of 1,000 pivot tokens."""
    text = "\n".join(message.content for dialogue in dialogues for message in dialogue.messages)
    ids = pivot_tokenizer.encode(text, add_special_tokens=False)
    texts = [pivot_tokenizer.decode(ids[i : i + 1000]) for i in range(0, min(len(ids) - 1000, 10_000), 1000)]
    pairs = []
    for one in texts:
        sides = [t.encode(one, add_special_tokens=False) for t in (pivot_tokenizer, source_tokenizer)]
        pairs.append(
            [[t.decode([i]) for i in side] for t, side in zip((pivot_tokenizer, source_tokenizer), sides, strict=True)]
        )
    align_released(*pairs[0])
    return sum(len(pair[0]) for pair in pairs) / seconds(lambda: [align_released(*pair) for pair in pairs])


def growth(points: list[dict[str, float]]) -> float:
    """Exponent b of seconds ~ tokens**b, by least squares on logarithms."""
    x, y = (np.log([point[key] for point in points]) for key in ("tokens", "seconds"))
    return float(np.polyfit(x, y, 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder with the two models")
    parser.add_argument("--dialogues", type=Path, required=True, help="dialogue file")
    parser.add_argument("--limit", type=int, default=270, help="dialogues of it")
    parser.add_argument(
        "--tokens", type=int, default=1_000_000, help="smallest stage run; the largest has eight times as many"
    )
    parser.add_argument("--out", type=Path, default=Path("models/rows"), help="where model rows are kept")
    parser.add_argument(
        "--rules", nargs="+", choices=list(RULES), default=list(RULES), help="rules of the quality table"
    )
    parser.add_argument("--stage-in", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rows-file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage_in:
        stage_in_process(
            arguments.stage_in,
            arguments.models,
            arguments.dialogues,
            arguments.rows_file,
            arguments.limit,
            arguments.tokens,
        )
        return
    print(
        f"{platform.node()}: {platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    dialogues = list(read_dialogues([str(arguments.dialogues)]))[: arguments.limit]
    figures = quality(arguments.models, dialogues, arguments.out, arguments.rules)
    smollm2, gemma = (tokens_of(arguments.models / name, dialogues) for name in PAIR)
    rows_file = arguments.out / f"{PAIR[0]}.native.{len(dialogues)}.npz"
    points = [run_stage(arguments, rows_file, arguments.tokens * times) for times in (1, 2, 4, 8)]
    native = {
        rule: [f for key, f in figures.items() if key.endswith(f"native template, {rule}")]
        for rule in ("default", "released")
    }
    worst = {rule: max(native[rule], key=lambda f: f["bits_per_byte_lost_share"]) for rule in native}
    lowest = {rule: min(f["coverage"] for f in native[rule]) for rule in native}
    result = {
        "span_tokens_per_s_core": round(span_speed(gemma[1], smollm2[1])),
        "stage_tokens_per_s_core": round(statistics.median(point["tokens"] / point["seconds"] for point in points)),
        "released_mode_tokens_per_s_1k": round(released_speed(smollm2[0], gemma[0], dialogues)),
        "peak_rss_gib": round(max(point["peak_rss_gib"] for point in points), 3),
        "growth_exponent": round(growth(points), 3),
        "coverage_default": lowest["default"],
        "bits_per_byte_lost_default": worst["default"]["bits_per_byte_lost_share"],
        "coverage_released": lowest["released"],
        "bits_per_byte_lost_released": worst["released"]["bits_per_byte_lost_share"],
        "label_bits_per_byte_lost_default": worst["default"]["label_bits_per_byte_lost_share"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
