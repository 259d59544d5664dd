"""What alignment costs, and how much it adds or loses.

    python -m benchmarks.bench_alignment [--part quality truth pairs speed] [--dialogues FILE] [--limit N] [--models FOLDER] [--out FOLDER]

- quality: real rows of two models in both directions (a plain transformers forward, kept in --out), per rule, under
  native templates and under the pivot's.
- truth: a pivot vocabulary that lacks merges of the source's (benchmarks/alignment_truth.py).
- pairs: real tokenizer pairs. With the demo's small model rows are its own and SmolLM2's; Mistral v1 and Qwen1.5 have no
  model here, their rows are bigram counts of the same text (`bigram_rows`).
- speed: one core, real tokens and rows repeated (benchmarks/alignment_speed.py).

The last line is one JSON object; parts that were run before on the same --out are in it.
"""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# This file is called like a package of ours, which it would hide as long as its own folder is searched first.

import numpy as np

from alignment.quality import measure_shard, summarise
from alignment.vocabulary.vocabulary_file import Vocabularies
from benchmarks import alignment_speed, alignment_truth
from benchmarks.alignment_rows import (
    RULES,
    bigram_rows,
    mistral_and_qwen,
    model_rows,
    project,
    tokens_of,
    vocabularies_of,
)
from fusechat.storage.tokens import Tokens
from fusechat.text.dialogues import Dialogue, read_dialogues

PAIR = ("smollm2-135m-instruct", "gemma-3-270m")
DEMO = "velan-moe"
SHOWN = ("rows", "coverage", "mass_home", "bits_per_byte_lost_share", "label_bits_per_byte_lost_share")


def measured(
    rule: str,
    pivot: tuple[Any, Tokens],
    source: tuple[Any, Tokens],
    rows: dict[str, np.ndarray],
    made: dict[Any, Vocabularies],
) -> dict[str, Any]:
    """Figures of all dialogues by one rule; each side is its tokenizer and its tokens.

    Args:
        made: vocabularies of these two tokenizers, kept for the next rule and template.
    """
    section = RULES[rule]
    by_pieces = section.vocabulary_rule in ("min_edit", "exact")  # these maps do not depend on the counts
    key = (section.vocabulary_rule, section.token_rule, None if by_pieces else source[1].attributes["template"])
    if key not in made:
        made[key] = vocabularies_of(section, pivot, source)
    vocabularies = made[key]
    p, s, spans, found = project(section, pivot[1], source[1], rows, vocabularies)
    figures = summarise(measure_shard(p, s, spans, rows, found, vocabularies.tables))
    return {**figures, "vocabulary_map": vocabularies.origin_counts()}


def quality(models: Path, dialogues: list[Dialogue], out: Path, rules: Sequence[str] = tuple(RULES)) -> dict[str, Any]:
    """Prints the table of rules; returns the keys of the result.

    Args:
        rules: `default` and `released` among them.
    """
    found: dict[str, Any] = {}
    for pivot_name, source_name in (PAIR, PAIR[::-1]):
        pivot, made = tokens_of(models / pivot_name, dialogues), {}  # type: Any, dict[Any, Vocabularies]
        for template in ("native", "pivot"):
            text = None if template == "native" else pivot[1].attributes["template"]
            source = tokens_of(models / source_name, dialogues, text)
            rows = model_rows(models / source_name, source[1], out)
            for rule in rules:
                key = f"{source_name} -> {pivot_name}, {template} template, {rule}"
                found[key] = measured(rule, pivot, source, rows, made)
                print_figures(key, found[key])
    native = {r: [f for key, f in found.items() if key.endswith(f"native template, {r}")] for r in rules}
    worst = {rule: max(native[rule], key=lambda f: f["bits_per_byte_lost_share"]) for rule in native}
    return {
        "dialogues": len(dialogues),
        "coverage_default": min(f["coverage"] for f in native["default"]),
        "bits_per_byte_lost_default": worst["default"]["bits_per_byte_lost_share"],
        "label_bits_per_byte_lost_default": max(
            (f["label_bits_per_byte_lost_share"] for f in native["default"]), key=abs
        ),
        "coverage_released": min(f["coverage"] for f in native["released"]),
        "bits_per_byte_lost_released": worst["released"]["bits_per_byte_lost_share"],
        "coverage_default_digits": min(f["by_text"]["digits"]["coverage"] for f in native["default"]),
        "coverage_released_digits": min(f["by_text"]["digits"]["coverage"] for f in native["released"]),
    }


def truth(models: Path, dialogues: list[Dialogue], out: Path) -> dict[str, Any]:
    """Mean KL from truth per rule and pivot vocabulary, of a few dialogues (every row is a full distribution)."""
    found = alignment_truth.run(models, PAIR[0], dialogues[:8], out, (24_576, 8_192))
    return {
        "kl_from_truth": {
            f"{part['pivot_vocabulary']:,} ids": {rule: part[rule]["kl"] for rule in (*RULES, "best of K entries")}
            for part in found.values()
        }
    }


def pairs(models: Path, dialogues: list[Dialogue], out: Path) -> dict[str, Any]:
    """Coverage and losses of the default and the released rules on more pairs of tokenizers."""
    mistral, qwen = mistral_and_qwen(out)
    folders = {"mistral-v1": mistral, "qwen1.5": qwen, DEMO: models / DEMO, PAIR[0]: models / PAIR[0]}
    sides = {name: tokens_of(folder, dialogues) for name, folder in folders.items()}
    found: dict[str, Any] = {}
    for names in (("mistral-v1", "qwen1.5"), (DEMO, PAIR[0])):
        for source, pivot in (names, names[::-1]):
            has_model = (folders[source] / "model.safetensors").exists()
            make = model_rows(folders[source], sides[source][1], out) if has_model else bigram_rows(sides[source][1])
            kept: dict[Any, Vocabularies] = {}
            for rule in ("default", "released"):
                key = f"{source} -> {pivot}, {'model' if has_model else 'bigram'} rows, {rule}"
                figures = measured(rule, sides[pivot], sides[source], make, kept)
                print_figures(key, figures)
                found[key] = {name: figures[name] for name in SHOWN}
    return {"pairs": found}


def speed(models: Path, dialogues: list[Dialogue], out: Path) -> dict[str, Any]:
    """The figures of speed and memory."""
    smollm2, gemma = (tokens_of(models / name, dialogues) for name in PAIR)
    rows = model_rows(models / PAIR[0], smollm2[1], out)
    points = [alignment_speed.stage_speed(gemma, smollm2, rows, 1_000_000 * times) for times in (1, 2, 4, 8)]
    mistral, qwen = (tokens_of(folder, dialogues) for folder in mistral_and_qwen(out))
    large = alignment_speed.stage_speed(qwen, mistral, bigram_rows(mistral[1]), 8_000_000)
    for name, point in [*((f"{PAIR[0]} -> {PAIR[1]}", point) for point in points), ("mistral-v1 -> qwen1.5", large)]:
        print(f"{name}: {json.dumps({key: round(value, 3) for key, value in point.items()})}", flush=True)
    rates = [point["tokens"] / point["seconds"] for point in points]
    return {
        "span_tokens_per_s_core": round(alignment_speed.span_speed(gemma[1], smollm2[1])),
        "stage_tokens_per_s_core": round(statistics.median(rates)),
        "stage_tokens_per_s_core_32k_152k": round(large["tokens"] / large["seconds"]),
        "released_mode_tokens_per_s_1k": round(alignment_speed.released_speed(smollm2[0], gemma[0], dialogues)),
        "peak_rss_gib": round(max(large["map_peak_rss_gib"], large["worker_peak_rss_gib"]), 3),
        "peak_rss_gib_second_map": round(large["map_again_peak_rss_gib"], 3),
        "worker_peak_rss_gib": round(large["worker_peak_rss_gib"], 3),
        "peak_rss_gib_49k_262k": round(max(point["map_peak_rss_gib"] for point in points), 3),
        "worker_peak_rss_gib_49k_262k": round(max(point["worker_peak_rss_gib"] for point in points), 3),
        "growth_exponent": round(alignment_speed.growth(points), 3),
    }


PARTS: dict[str, Callable[..., dict[str, Any]]] = {"quality": quality, "truth": truth, "pairs": pairs, "speed": speed}


def print_figures(key: str, figures: dict[str, Any]) -> None:
    print(f"{key}: {json.dumps(figures['kinds'])}, {figures['chained_rows']} chained, {figures['vocabulary_map']}")
    for name, part in {"all": figures, **figures["by_text"]}.items():
        print(f"  {name:<14}" + "  ".join(f"{k} {part[k]}" for k in SHOWN), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS), help="what to measure")
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES), help="of the quality table")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder with the demo's models")
    parser.add_argument("--dialogues", type=Path, default=Path("examples/dialogues/held_out.jsonl"))
    parser.add_argument("--limit", type=int, default=120, help="dialogues of it")
    parser.add_argument("--out", type=Path, default=Path("models/rows"), help="where rows and results are kept")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    dialogues = list(read_dialogues([str(arguments.dialogues)]))[: arguments.limit]
    results = arguments.out / f"alignment.{arguments.dialogues.stem}.{len(dialogues)}.json"
    kept = json.loads(results.read_text()) if results.exists() else {}
    for part in arguments.part:
        options = {"rules": list(dict.fromkeys([*arguments.rules, "default", "released"]))} if part == "quality" else {}
        kept |= PARTS[part](arguments.models, dialogues, arguments.out, **options)
        results.write_text(json.dumps(kept))
    print(json.dumps(kept))


if __name__ == "__main__":
    main()
