"""Whether the rows that generation computes on the way could be stored in place of scored ones.

    python -m benchmarks.generated_rows [--model models/smollm2-135m-instruct] [--prompts FILE] [--limit 64]

One engine answers with and without logprobs of the k most probable tokens, in turns; another one then scores the same ids by
engine forcing, as extraction does. The last line is one JSON object:

- `generated_minus_scored_mean`, `_max`: absolute differences of the labels' logprobs, nats; `rows_beyond_tolerance`: share of
  the rows whose label differs by more than the self-check allows;
- `answers_read_back_to_the_same_ids`: share of the answers whose text, tokenized again as part of a dialogue, gives the ids that
  were generated; only of these could the rows be kept;
- `logprobs_cost`: seconds of generating with logprobs over those without, less 1; `scoring_cost`: seconds of scoring over those of
  generating. Keeping rows pays where the second is larger than the first.
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

from benchmarks.writing_speed import PROMPTS, prompts_of, template_of

K, TOKENS, TEMPERATURE = 10, 64, 0.8


def generate(order: dict[str, Any], out: Path) -> None:
    """Answer all prompts in turns with and without logprobs; keep ids, labels' logprobs and seconds."""
    from fusechat.text.answer_reading import AnswerReader
    from fusechat.text.chat_template import load_tokenizer
    from fusechat.text.tokenization import tokenize_prompt
    from inference.engine.environment import prepare_environment

    template = template_of(order)
    tokenizer, _ = load_tokenizer(order["model"], template=template.text)
    asked = [tokenize_prompt(tokenizer, template, prompt.dialogue) for prompt in prompts_of(order)]
    prepare_environment(1)
    from vllm import LLM, SamplingParams

    stops = AnswerReader(tokenizer, template).stop_ids
    llm = LLM(
        order["model"], max_model_len=max(map(len, asked)) + TOKENS + 8, enforce_eager=True, max_logprobs=K,
        kv_cache_memory_bytes=2**29, enable_prefix_caching=False,
    )  # fmt: skip
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for number in range(2 * order["rounds"] + 2):
        name = "with" if number % 2 else "without"
        params = SamplingParams(
            max_tokens=TOKENS, temperature=TEMPERATURE, stop_token_ids=stops, seed=0, detokenize=False,
            logprobs=K if name == "with" else None,
        )  # fmt: skip
        started = time.perf_counter()
        prompts: Any = [{"prompt_token_ids": ids} for ids in asked]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        if number > 1:  # the first of each warms up
            seconds[name].append(time.perf_counter() - started)
    answers = []
    for ids, output in zip(asked, outputs, strict=True):
        one = output.outputs[0]
        entries: Any = one.logprobs or []
        labels = [float(entry[token].logprob) for token, entry in zip(one.token_ids, entries, strict=True)]
        answers.append({"prompt": ids, "answer": list(one.token_ids), "labels": labels})
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    out.write_text(json.dumps({"answers": answers, "seconds": medians}), encoding="utf-8")


def compare(order: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """Score what was generated, and say how far both agree and what each costs."""
    from inference.engine.engine import Engine
    from inference.self_check import TOLERANCES

    answers = [one for one in made["answers"] if one["answer"]]
    ids = [np.array(one["prompt"] + one["answer"], np.int32) for one in answers]
    marks = [np.arange(len(own)) >= len(one["prompt"]) for own, one in zip(ids, answers, strict=True)]
    with Engine(order["model"], k=K, max_tokens=max(map(len, ids))) as engine:
        engine.score(ids, marks)
        seconds = []
        for _ in range(order["rounds"]):
            started = time.perf_counter()
            rows = engine.score(ids, marks)
            seconds.append(time.perf_counter() - started)
        allowed = TOLERANCES[engine.info["dtype"]].each
    scored = np.concatenate([one.label_logprob for one in rows])
    generated = np.concatenate([np.array(one["labels"], np.float32) for one in answers])
    apart = np.abs(scored - generated)
    plain, kept = made["seconds"]["without"], made["seconds"]["with"]
    return {
        "generated_minus_scored_mean": round(float(apart.mean()), 6),
        "generated_minus_scored_max": round(float(apart.max()), 4),
        "rows_beyond_tolerance": round(float((apart > allowed).mean()), 6), "tolerance": allowed, "rows": len(apart),
        "answers_read_back_to_the_same_ids": round(read_back(order, answers), 4),
        "logprobs_cost": round(kept / plain - 1, 4), "scoring_cost": round(statistics.median(seconds) / plain, 4),
    }  # fmt: skip


def read_back(order: dict[str, Any], answers: list[dict[str, Any]]) -> float:
    """Share of the answers that, read back into a dialogue and tokenized in it, give the ids that were generated."""
    from fusechat.errors import DialogueError
    from fusechat.text.answer_reading import AnswerReader
    from fusechat.text.chat_template import load_tokenizer
    from fusechat.text.tokenization import tokenize_dialogue

    template = template_of(order)
    tokenizer, _ = load_tokenizer(order["model"], template=template.text)
    reader, same, whole = AnswerReader(tokenizer, template), 0, 0
    by_prompt = {tuple(_asked(tokenizer, template, one)): one for one in prompts_of(order)}
    for one in answers:
        if one["answer"][-1] not in reader.stop_ids:
            continue  # cut off: it becomes no dialogue
        whole += 1
        prompt = by_prompt[tuple(one["prompt"])]
        try:
            message = reader.read(one["answer"][:-1], prompt.dialogue)
        except DialogueError:
            continue
        ids = tokenize_dialogue(tokenizer, template, prompt.answered([message])).token_ids.tolist()
        same += ids[: len(one["prompt"]) + len(one["answer"])] == one["prompt"] + one["answer"]
    return same / max(1, whole)


def _asked(tokenizer: Any, template: Any, prompt: Any) -> list[int]:
    from fusechat.text.tokenization import tokenize_prompt

    return tokenize_prompt(tokenizer, template, prompt.dialogue)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m-instruct", help="folder of the writer")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="file of prompts")
    parser.add_argument("--limit", type=int, default=64, help="prompts")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    order = {
        "model": arguments.model, "prompts": str(arguments.prompts), "limit": arguments.limit, "rounds": arguments.rounds
    }  # fmt: skip
    if arguments.out:
        generate(order, arguments.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "generated.json"
        subprocess.run(
            [sys.executable, "-m", "benchmarks.generated_rows", *sys.argv[1:], "--out", str(out)], check=True
        )
        result = compare(order, json.loads(out.read_text(encoding="utf-8")))
    print(json.dumps({**result, "cpus": os.cpu_count(), "machine": platform.processor() or platform.machine()}))


if __name__ == "__main__":
    main()
