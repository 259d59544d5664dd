"""The experiment on real text: a real pivot, one real source that is hardly better, and dialogues that a file gives.

In the invented worlds a source knows what no dialogue shows. Here the source is worse than the student soon is, so that
its rows can hold the student back: what a gate must see.
"""

import json
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForCausalLM

from evaluation.intervals import ratio_interval
from fusechat.config import RunConfig
from fusechat.text.dialogues import Dialogue, Message

from .arms import lesson_of
from .corpus import Corpus, read_corpus, run_stages, write_dialogues
from .loop import Settings, held_out_losses, train

TEMPLATES = Path(__file__).parents[2] / "examples" / "templates"
NUM_TRAIN, NUM_HELD_OUT = 600, 120


def real_config(folder: Path, pivot: str, source: str) -> RunConfig:
    """The run of the pivot and its one source, a base model that reads under plain labels."""
    return RunConfig.model_validate({
        "run": {"output": str(folder / "out"), "store": str(folder / "store")},
        "pivot": {"name": "pivot", "model": pivot, "template": str(TEMPLATES / "chatml.jinja")},
        "sources": [{"name": "source", "model": source, "template": str(TEMPLATES / "plain.jinja")}],
        "dialogues": {
            "train": [str(folder / "train.jsonl")], "held_out": [str(folder / "held_out.jsonl")],
            "max_tokens": 512, "on_overlap": "keep",
        },
        "extraction": {"k": 10, "shard_tokens": 4096},
    })  # fmt: skip


def prepare_real(folder: Path, pivot: str, source: str, train: Path, held_out: Path) -> Corpus:
    """A fixed sample of both files taken through the stages, once."""
    write_dialogues(folder / "train.jsonl", sample(train, NUM_TRAIN))
    write_dialogues(folder / "held_out.jsonl", sample(held_out, NUM_HELD_OUT))
    config = real_config(folder, pivot, source)
    run_stages(config)
    return read_corpus(config)


def sample(path: Path, number: int) -> list[Dialogue]:
    """Dialogues of a JSONL file, in its order; the kind is what stands before the first hyphen of the id."""
    lines = path.read_text(encoding="utf-8").splitlines()
    chosen = sorted(random.Random(0).sample(range(len(lines)), min(number, len(lines))))
    records = [json.loads(lines[index]) for index in chosen]
    return [
        Dialogue(
            record["id"], tuple(Message(m["role"], m["content"]) for m in record["messages"]),
            kind=record["id"].split("-")[0],
        )
        for record in records
    ]  # fmt: skip


ARMS = (
    "sft", "joint", "joint_gap", "joint_soft", "joint_untrusted", "joint_first_sight", "smoothing",
)  # fmt: skip
SETTINGS = Settings(epochs=1, seed=0, learning_rate=5e-5, batch=16, micro_batch=4, bfloat16=True)


def run(folder: Path, pivot: str, source: str, train_file: Path, held_out_file: Path) -> None:
    """Train every arm that has no file yet, one epoch each, and print the table; the last line is one JSON object."""
    corpus = prepare_real(folder, pivot, source, train_file, held_out_file)
    print(json.dumps({"source_teaches": taught_shares(corpus)}), flush=True)
    untrained = AutoModelForCausalLM.from_pretrained(pivot, dtype="float32").eval()
    figures = {"pivot": held_out_losses(untrained, corpus.held_out, batch=8)[0]}
    del untrained
    for arm in ARMS:
        file = folder / f"{arm}.json"
        if not file.exists():
            started = time.monotonic()
            trained = train(corpus, Path(pivot), lesson_of(corpus, arm), SETTINGS)
            nats, _ = held_out_losses(trained.model, corpus.held_out, batch=8)
            values = {"nats": nats.tolist(), "open_share": trained.open_share, "seconds": time.monotonic() - started}
            file.write_text(json.dumps(values))
        figures[arm] = np.array(json.loads(file.read_text())["nats"])
        print_real(corpus, figures)


def taught_shares(corpus: Corpus) -> dict[str, list[float]]:
    """kind -> share of its dialogues that the source teaches, and the mean weight of its rows there."""
    lesson, kinds = lesson_of(corpus, "joint"), corpus.train.kind
    taught = np.isin(np.arange(corpus.num_dialogues), corpus.dialogue[lesson.source >= 0])
    weight = np.where(lesson.source >= 0, lesson.weight, 0.0)
    shares = {}
    for kind in np.unique(kinds):
        rows = (kinds == kind)[corpus.dialogue] & (lesson.source >= 0)
        mean = float(weight[rows].mean()) if rows.any() else 0.0
        shares[str(kind)] = [round(float(taught[kinds == kind].mean()), 3), round(mean, 3)]
    return shares


def print_real(corpus: Corpus, figures: dict[str, np.ndarray]) -> None:
    """Bits per byte of every arm, and its difference from SFT with an interval over dialogues, in all and by kind."""
    split = corpus.held_out
    values: dict[str, dict[str, dict[str, Any]]] = {}
    for arm, nats in figures.items():
        values[arm] = {}
        for kind in ("all", *np.unique(split.kind)):
            mine = np.ones(len(nats), bool) if kind == "all" else split.kind == kind
            num_bytes = split.num_bytes[mine].astype(np.float64)
            bits = nats[mine] / math.log(2)
            row: dict[str, Any] = {"bits_per_byte": round(float(bits.sum() / num_bytes.sum()), 5)}
            if "sft" in figures and arm not in ("sft", "pivot"):
                change = bits - figures["sft"][mine] / math.log(2)
                interval = ratio_interval(change, num_bytes, seed=0)
                row["minus_sft"] = round(float(change.sum() / num_bytes.sum()), 5)
                row["interval"] = interval and [round(end, 5) for end in interval]
            values[arm][str(kind)] = row
    print(json.dumps(values), flush=True)
