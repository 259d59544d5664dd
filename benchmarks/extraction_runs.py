"""What the benchmarks of extraction share: contenders in processes of their own, tokens to work on, and turns.

In: a model folder and a file of dialogues. Out: seconds per contender and round, and ratios of them.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SHARD_TOKENS = 8192
PLAIN_TEMPLATE = HERE.parent / "examples/templates/plain.jinja"


class Contender:
    """An engine in a process of its own (see extraction_worker.py)."""

    def __init__(self, engine: str, config: Any, folder: Path, *, environment: dict[str, str] | None = None) -> None:
        path = folder / f"{engine}.{config.extraction.k}.{id(self)}.json"
        path.write_text(json.dumps(config.dump()), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.extraction_worker", engine, str(path)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
        )
        self.started: dict[str, Any] = self._answer()
        """Seconds that the engine took to start, and what it says of itself."""

    def call(self, *command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(*command, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a contender ended with status {self._process.wait()}; its messages stand above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.communicate("quit\n")


def make_config(
    folder: Path,
    model: str,
    *,
    k: int,
    engine: dict[str, Any],
    capture: str = "topk_pooler",
    shard_tokens: int = SHARD_TOKENS,
    **dialogues: Any,
) -> Any:
    """A run over one model."""
    from fusechat.config import RunConfig

    has_template = any((Path(model) / name).is_file() for name in ("chat_template.jinja", "chat_template.json"))
    return RunConfig.model_validate(
        {
            "run": {"output": str(folder / f"{capture}.{k}")},
            "pivot": {
                "name": "teacher",
                "model": model,
                "template": "native" if has_template else str(PLAIN_TEMPLATE),
                "engine": engine,
            },
            "sources": [{"name": "unused", "model": model}],
            "dialogues": {"train": ["none"], "held_out_share": 0, **dialogues},
            "extraction": {"k": k, "capture": capture, "shard_tokens": shard_tokens, "self_check_dialogues": 0},
        }
    )  # fmt: skip


def make_tokens(
    folder: Path, model: str, dialogues_file: Path, limit: int, engine: dict[str, Any], shard_tokens: int = SHARD_TOKENS
) -> tuple[Any, Any]:
    """A run folder with the tokens of the first dialogues of a file; (config, Tokens)."""
    from cluster import tokenizing
    from fusechat.storage.tokens_reader import read_tokens

    lines = dialogues_file.read_text(encoding="utf-8").splitlines(keepends=True)
    if len(lines) < limit:
        say(f"{dialogues_file}: holds {len(lines)} dialogues, {limit} were asked for: they are repeated")
    folder.mkdir(parents=True, exist_ok=True)
    chosen = folder / "dialogues.jsonl"
    copies = [json.loads(line) for line in (lines * -(-limit // len(lines)))[:limit]]
    records = [{**record, "id": f"{number}"} for number, record in enumerate(copies)]
    chosen.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    config = make_config(folder, model, k=10, engine=engine, shard_tokens=shard_tokens, train=[str(chosen)])
    tokenizing.read_dialogues(config)
    tokenizing.tokenize(config, "teacher")
    return config, read_tokens(config.tokens_url("teacher"))


def in_turns(contenders: dict[str, tuple[Contender, str]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round; a first round, which warms up, does not count."""
    seconds_of: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, (contender, command) in contenders.items():
            seconds = contender.call(command)["seconds"]
            say(f"round {number} {name}: {seconds:.2f} s")
            if number:
                seconds_of[name].append(seconds)
    return seconds_of


def rates(tokens: Any, seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(tokens.num_tokens / statistics.median(values), 1) for name, values in seconds.items()}


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """Of the rounds' own ratios: what slows the machine for a while slows both sides."""
    return round(statistics.median(a / b for a, b in zip(numerators, denominators, strict=True)), 4)


def of_capture(folder: Path, base: Any, capture: str, k: int) -> Any:
    """The run of another capture or k over the same tokens."""
    engine = base.pivot.engine.model_dump(exclude_unset=True)
    config = make_config(
        folder, base.pivot.model, k=k, engine=engine, capture=capture, shard_tokens=base.extraction.shard_tokens
    )
    if config.run.output != base.run.output and not config.run.output.exists():
        config.run.output.mkdir(parents=True)
        (config.run.output / "tokens").symlink_to((base.run.output / "tokens").absolute())
    return config


def flop_limit(model: str, tokens: Any) -> float:
    """Operations of plain prefill over those of prefill and the head's products for the rows that are scored."""
    from fusechat.models.model_files import read_model_config

    values = read_model_config(Path(model))
    hidden, layers, wide = values["hidden_size"], values["num_hidden_layers"], values["intermediate_size"]
    heads, groups = values["num_attention_heads"], values["num_key_value_heads"]
    width = values.get("head_dim") or hidden // heads
    per_token = layers * (2 * hidden * width * (heads + groups) + 3 * hidden * wide)
    context = float((tokens.lengths.astype(float) ** 2).sum() / 2 / tokens.num_tokens)
    body = per_token + layers * 2 * context * heads * width
    head = hidden * int(values["vocab_size"]) * tokens.num_rows / tokens.num_tokens
    return float(body / (body + head))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
