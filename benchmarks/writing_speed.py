"""How fast the stage `write` is: tokens written a second, against vLLM's own `LLM.generate` on the same prompts.

    python -m benchmarks.writing_speed [--model models/smollm2-135m-instruct] [--prompts FILE] [--limit 128] [--rounds 5]

Each contender has an engine in a process of its own that works only in its turn. `stage` is the whole of it as a worker of a run
does it: prompts rendered and tokenized, every sample with its seed, answers read back into their fields, chunks written. `vllm` is
`LLM.generate` over prompts that are token ids already, `n` samples each, with vLLM's own defaults but for dtype, length and the
memory of the KV cache; it detokenizes, and writes nothing. (Without seeds: with them vLLM dies on a CPU where a prompt is cut
between two steps.) Starts do not count. `write_over_vllm` is the median over the rounds of
the ratio of their rates; the last line is one JSON object.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PLAIN_TEMPLATE = Path(__file__).parents[1] / "examples/templates/plain.jinja"
PROMPTS = Path(__file__).parents[1] / "examples/dialogues/train.jsonl"
UNITS_IN_FLIGHT = 2


def measure(
    model: str,
    prompts_file: Path = PROMPTS,
    *,
    limit: int = 128,
    rounds: int = 5,
    engine: dict[str, Any] | None = None,
    section: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The rates of both and their ratio.

    Args:
        prompts_file: as `dialogues.prompts` takes it; repeated where it holds fewer than `limit`.
        engine: the writer's engine section.
        section: fields of `writing`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        order = {
            "model": model, "prompts": str(prompts_file), "limit": limit, "engine": engine or {}, "folder": temporary,
            "section": {"samples": 4, "temperature": 0.8, "max_new_tokens": 64, **(section or {})},
        }  # fmt: skip
        contenders = {name: _Contender(name, order) for name in ("stage", "vllm")}
        ratios: list[float] = []
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(rounds + 1):
            turns = list(contenders) if number % 2 else list(contenders)[::-1]
            rate = {name: contenders[name].call() for name in turns}
            _say(f"round {number}: " + ", ".join(f"{name} {value:,.1f} tokens/s" for name, value in rate.items()))
            if number:  # the first warms up
                ratios.append(rate["stage"] / rate["vllm"])
                for name, value in rate.items():
                    rates[name].append(value)
        for contender in contenders.values():
            contender.close()
    return {
        "write_over_vllm": round(statistics.median(ratios), 4),
        "write_over_vllm_range": [round(min(ratios), 4), round(max(ratios), 4)],
        "written_tokens_per_s": {name: round(statistics.median(values), 1) for name, values in rates.items()},
        "answers": limit * order["section"]["samples"],  # type: ignore[index]  # a dict of ints
        **{name: contender.started for name, contender in contenders.items()},
    }


class _Contender:
    """A contender in a process of its own: a line asks it to write everything once, a JSON line says how it went."""

    def __init__(self, name: str, order: dict[str, Any]) -> None:
        command = [sys.executable, "-m", "benchmarks.writing_speed", "--contender", name, "--order", json.dumps(order)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.started: dict[str, Any] = self._answer()

    def call(self) -> float:
        """Tokens a second of one pass."""
        assert self._process.stdin is not None
        print("write", file=self._process.stdin, flush=True)
        answer = self._answer()
        return float(answer["tokens"] / answer["seconds"])

    def close(self) -> None:
        self._process.communicate("")

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a contender ended with status {self._process.wait()}; its messages stand above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _serve(name: str, order: dict[str, Any]) -> None:
    """The loop of a contender's process."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand among the answers
    contender: _Stage | _Vllm = _Stage(order) if name == "stage" else _Vllm(order)
    print(json.dumps({"device": contender.device}), file=answers, flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        tokens = contender.write()
        print(json.dumps({"seconds": time.perf_counter() - started, "tokens": tokens}), file=answers, flush=True)
    contender.close()


class _Stage:
    """A worker of the stage, as a run starts it."""

    def __init__(self, order: dict[str, Any]) -> None:
        from fusechat.config.writing import WritingSection
        from fusechat.text.prompts import write_prompts
        from inference.writing.writer_worker import WriterInputs, WriterWorker

        self._folder, section = Path(order["folder"]) / "stage", WritingSection.model_validate(order["section"])
        self._folder.mkdir()
        prompts = prompts_of(order)
        write_prompts(self._folder / "prompts.jsonl", prompts)
        self._inputs = WriterInputs(
            model=_model(order), template=template_of(order).to_attributes(),
            prompts_file=str(self._folder / "prompts.jsonl"), folder=str(self._folder / "answers"),
            chunk_prompts=section.chunk_prompts, samples=section.samples, temperature=section.temperature,
            max_new_tokens=section.max_new_tokens, seed=0,
        )  # fmt: skip
        self._units = range(-(-len(prompts) // section.chunk_prompts))
        self._worker = WriterWorker(self._inputs)
        self._worker.start()
        self.device = self._worker._engine.info["device"]  # type: ignore[union-attr]  # it has started

    def write(self) -> int:
        shutil.rmtree(self._inputs.folder, ignore_errors=True)
        with ThreadPoolExecutor(UNITS_IN_FLIGHT) as pool:
            return sum(result["tokens"] for result in pool.map(self._worker.run_unit, self._units))

    def close(self) -> None:
        self._worker.close()


class _Vllm:
    """vLLM's offline class, as its documentation shows it."""

    def __init__(self, order: dict[str, Any]) -> None:
        from fusechat.config import EngineSection
        from fusechat.text.answer_reading import AnswerReader
        from fusechat.text.chat_template import load_tokenizer
        from fusechat.text.tokenization import tokenize_prompt
        from inference.engine.environment import prepare_environment

        section, engine = order["section"], EngineSection.model_validate(order["engine"])
        template = template_of(order)
        tokenizer, _ = load_tokenizer(order["model"], template=template.text)
        ids = [tokenize_prompt(tokenizer, template, prompt.dialogue) for prompt in prompts_of(order)]
        prepare_environment(engine.tensor_parallel_size)
        from vllm import LLM, SamplingParams
        from vllm.platforms import current_platform

        self.device = current_platform.device_type
        own: dict[str, Any] = {"gpu_memory_utilization": engine.gpu_memory_utilization}
        if current_platform.is_cpu():
            own = {"kv_cache_memory_bytes": int(engine.kv_cache_gib * 2**30), "enforce_eager": True}
        dtype: Any = engine.dtype
        self._llm = LLM(
            order["model"], dtype=dtype, max_model_len=max(map(len, ids)) + section["max_new_tokens"] + 8, **own
        )
        self._prompts: Any = [{"prompt_token_ids": one} for one in ids]
        self._params = SamplingParams(
            n=section["samples"], temperature=section["temperature"], max_tokens=section["max_new_tokens"],
            stop_token_ids=AnswerReader(tokenizer, template).stop_ids,
        )  # fmt: skip

    def write(self) -> int:
        outputs = self._llm.generate(self._prompts, self._params, use_tqdm=False)
        return sum(len(one.token_ids) for output in outputs for one in output.outputs)

    def close(self) -> None:
        pass


def prompts_of(order: dict[str, Any]) -> list[Any]:
    """The prompts of an order, each with an id of its own however often it is repeated."""
    from dataclasses import replace

    from fusechat.text.prompts import read_prompts

    prompts = read_prompts([order["prompts"]])
    repeated = (prompts * -(-order["limit"] // len(prompts)))[: order["limit"]]
    return [replace(one, dialogue=replace(one.dialogue, id=str(n))) for n, one in enumerate(repeated)]


def _model(order: dict[str, Any]) -> Any:
    from fusechat.config import ModelSection

    return ModelSection(name="writer", model=order["model"], engine=order["engine"])


def template_of(order: dict[str, Any]) -> Any:
    """The writer's own template, or a plain one."""
    from fusechat.text.rendered import ChatTemplate

    folder = Path(order["model"])
    if (folder / "chat_template.jinja").is_file():
        return ChatTemplate((folder / "chat_template.jinja").read_text(encoding="utf-8"), {}, "2026-01-01")
    return ChatTemplate(PLAIN_TEMPLATE.read_text(encoding="utf-8"))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m-instruct", help="folder of the writer")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="file of prompts")
    parser.add_argument("--limit", type=int, default=128, help="prompts that are answered in one pass")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--engine", type=json.loads, default={}, help="the writer's engine section as JSON")
    parser.add_argument("--section", type=json.loads, default={}, help="fields of `writing` as JSON")
    parser.add_argument("--contender", choices=("stage", "vllm"), help=argparse.SUPPRESS)
    parser.add_argument("--order", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        _serve(arguments.contender, arguments.order)
        return
    result = measure(
        arguments.model, arguments.prompts, limit=arguments.limit, rounds=arguments.rounds, engine=arguments.engine,
        section=arguments.section,
    )  # fmt: skip
    print(json.dumps({**result, "cpus": os.cpu_count(), "machine": platform.processor() or platform.machine()}))


if __name__ == "__main__":
    main()
