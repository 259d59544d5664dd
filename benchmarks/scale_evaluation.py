"""Measuring the models of a finished run: engines in the pool against plain transformers, one model after the other.

`python -m benchmarks.scale_evaluation --run examples/quickstart.yaml`: wall time of each arm in a process of its own, imports and the
local Ray included; arms alternate, `evaluate_over_transformers` is the median of the rounds' ratios. `cpu_over_transformers` is the same
of CPU seconds, of all processes: a machine that does other things too leaves them alone. The rows on held-out dialogues, the
ids of the teachers' rows and the exact and sample answers are measured in both; the contender keeps nothing.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from fusechat.config import RunConfig, load_config

ARMS = ("engines", "transformers")
SAMPLE_SECONDS = 0.2
BATCH_TOKENS = 4096
"""Padded tokens of one batch of the contender."""


def evaluate_over_transformers(
    run_file: str | Path, *, overrides: tuple[str, ...] = (), rounds: int = 3
) -> dict[str, Any]:
    """Measure both arms.

    Args:
        run_file: a run that is finished up to its merge.
        overrides: `section.field=value`.
    Returns:
        `evaluate_over_transformers`, `cpu_over_transformers`, and the seconds of each arm's rounds.
    """
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    cpu_seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for number in range(rounds):
        for arm in ARMS if number % 2 == 0 else ARMS[::-1]:
            with tempfile.TemporaryDirectory() as folder:
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.scale_evaluation",
                    "--run",
                    str(run_file),
                    "--arm",
                    arm,
                    "--out",
                    folder,
                ]
                started = time.monotonic()
                cpu_seconds[arm].append(_run([*command, *(part for one in overrides for part in ("--set", one))]))
                seconds[arm].append(time.monotonic() - started)
    figures: dict[str, Any] = {
        "evaluate_over_transformers": _median_ratio(seconds),
        "cpu_over_transformers": _median_ratio(cpu_seconds),
    }
    for arm in ARMS:
        figures |= {f"{arm}_seconds": seconds[arm], f"{arm}_cpu_seconds": cpu_seconds[arm]}
    return figures


def _median_ratio(values: dict[str, list[float]]) -> float:
    ratios: list[float] = [own / other for own, other in zip(*values.values(), strict=True)]
    return statistics.median(ratios)


def _run(command: list[str]) -> float:
    """Run to the end; gives the CPU seconds of the process and of all that it started, looked at five times a second."""
    used: dict[psutil.Process, float] = {}
    process = psutil.Popen(command)
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            for one in [process, *process.children(recursive=True)]:
                times = one.cpu_times()
                used[one] = times.user + times.system
        time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: ended with status {process.returncode}")
    return sum(used.values())


def measured_elsewhere(config: RunConfig, folder: Path) -> RunConfig:
    """The run with all that measuring leaves below another folder."""
    kept = ["dialogues", "fused", *(f"targets/{name}" for name in config.trained_names)]
    for model in config.models:
        kept += [f"tokens/{model.name}", f"tokens/{model.name}.held_out", f"logprobs/{model.name}"]
    kept += [f"aligned/{source.name}" for source in config.sources]
    section = config.run.model_copy(update={"output": folder, "store": None})
    return config.model_copy(update={"run": section}).with_places({key: config.url(key) for key in kept})


def by_engines(config: RunConfig) -> None:
    """The stage itself."""
    from cluster import answering
    from fusechat.progress import Progress

    answering.run(config, progress=Progress(quiet=True))


def by_transformers(config: RunConfig) -> None:
    """One network in memory at a time, in float32; padded batches, longest first, logits where a target is predicted."""
    import torch
    from transformers import AutoModelForCausalLM

    from fusechat.models.measured_models import measured_models
    from fusechat.storage.tokens_reader import read_tokens
    from inference.answering.asked import asked_sets
    from inference.held_out.teachers import teacher_samples

    names = [source.name for source in config.sources]
    wanted = config.evaluation.held_out.divergence_dialogues
    samples = teacher_samples(
        config.layout, config.pivot.name, names, split="train", num_dialogues=wanted, seed=config.run.seed
    )  # fmt: skip
    sampled = samples[0].dialogues if samples else ()
    for model in measured_models(config.layout, config.pivot, config.sources, config.measured_ids):
        network = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32).eval()
        held_out = read_tokens(config.tokens_url(model.reader, "held_out"))
        _score(network, held_out, range(held_out.num_dialogues))
        if model.reader == config.pivot.name and sampled:
            _score(network, read_tokens(config.tokens_url(model.reader)), sampled)
        for asked_set in asked_sets(config.evaluation, str(config.dialogues_path / "held_out.jsonl"), model.role):
            _answer(network, config, model.reader, asked_set)


def _score(network: Any, tokens: Any, dialogues: Any) -> float:
    """Summed nats of the targets of some dialogues."""
    import numpy as np
    import torch

    order = sorted((int(number) for number in dialogues), key=lambda number: -int(tokens.lengths[number]))
    total, start = 0.0, 0
    while start < len(order) and tokens.lengths[order[start]]:
        width = int(tokens.lengths[order[start]])
        batch = order[start : start + max(1, BATCH_TOKENS // width)]
        ids, marks = np.zeros((len(batch), width), np.int64), np.zeros((len(batch), width), bool)
        for place, number in enumerate(batch):
            part = tokens.tokens_of(number)
            ids[place, : tokens.lengths[number]] = tokens.token_ids[part]
            marks[place, : tokens.lengths[number]] = tokens.is_scored[part]
        places, positions = np.nonzero(marks[:, 1:])
        with torch.inference_mode():
            hidden = network.base_model(input_ids=torch.from_numpy(ids), use_cache=False).last_hidden_state
            rows = hidden[torch.from_numpy(places), torch.from_numpy(positions)]
            labels = torch.from_numpy(ids[places, positions + 1])
            for part in range(0, len(rows), 128):
                logits = network.get_output_embeddings()(rows[part : part + 128])
                total += float(torch.nn.functional.cross_entropy(logits, labels[part : part + 128], reduction="sum"))
        start += len(batch)
    return total


def _answer(network: Any, config: RunConfig, reader: str, asked_set: Any) -> None:
    """Greedy answers to all questions of a set, in one left-padded batch for every 32."""
    import torch
    from transformers import GenerationConfig

    from fusechat.models import model_files
    from fusechat.storage.tokens_reader import read_tokens
    from fusechat.text.chat_template import load_tokenizer
    from fusechat.text.dialogues import Message
    from fusechat.text.questions import CHUNK_QUESTIONS
    from fusechat.text.rendered import ChatTemplate
    from fusechat.text.tokenization import tokenize_prompt

    tokens = read_tokens(config.tokens_url(reader))
    template = ChatTemplate.from_attributes(tokens.attributes)
    folder = model_files.resolve_model(config.model_named(reader))
    tokenizer, _ = load_tokenizer(str(folder), template=template.text)
    prompts = [
        tokenize_prompt(tokenizer, template, asked.dialogue or [Message("user", asked.question.turns[0])])
        for asked in asked_set.read()
    ]
    network.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=asked_set.max_new_tokens,
        eos_token_id=tokens.turn_end_ids() or None,
        pad_token_id=0,
    )
    for start in range(0, len(prompts), CHUNK_QUESTIONS):
        chunk = prompts[start : start + CHUNK_QUESTIONS]
        width = max(map(len, chunk))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in chunk])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in chunk])
        with torch.inference_mode():
            network.generate(input_ids=ids, attention_mask=mask)


def main() -> None:
    """Run one arm, or both of them in turns and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="run file; its run is finished up to the merge")
    parser.add_argument("--set", action="append", default=[], help="section.field=value")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arm", choices=ARMS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.arm is None:
        print(json.dumps(evaluate_over_transformers(options.run, overrides=tuple(options.set), rounds=options.rounds)))
        return
    config = measured_elsewhere(load_config(options.run, options.set), options.out)
    (by_engines if options.arm == "engines" else by_transformers)(config)


if __name__ == "__main__":
    main()
