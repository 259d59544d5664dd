"""Prompts with their answers, for people: an artifact of writing and the number of a prompt in, lines out."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, ConfigError
from ..text.prompt_stage import PROMPTS_FILE
from ..text.writing_files import VERDICTS_FILE

KINDS = {"prompts": PROMPTS_FILE, "answers": VERDICTS_FILE, "written": VERDICTS_FILE}
"""Kind of artifact -> its file with a line per prompt."""


def prompt_lines(url: str, kind: str, number: int) -> list[str]:
    """A prompt with its reference and all its answers, each with the verdict on it; of a writer's folder its answers alone.

    Args:
        kind: of the artifact, a key of KINDS.
        number: of the prompt, counted from 0.
    Raises:
        ConfigError: there are fewer prompts.
    """
    path = Path(url) / KINDS[kind]
    if not path.is_file():
        raise ArtifactError(f"{url}: {path.name} is not written yet; let the run finish `fusechat write`")
    with path.open(encoding="utf-8") as file:
        line = next(islice(file, max(0, number), None), None) if number >= 0 else None
    if line is None:
        raise ConfigError(f"--dialogue {number}: {path} has fewer prompts; they are counted from 0")
    row = json.loads(line)
    if kind == "prompts":
        return list(_prompt(row, number))
    if kind == "answers":
        return [f"prompt {number}:", *(text for answer in row for text in _answer(answer))]
    return [*_prompt(row["prompt"], number), *(text for answer in row["answers"] for text in _answer(answer))]


def _prompt(row: dict[str, Any], number: int) -> Iterator[str]:
    kind = f", kind {row['kind']!r}" if row["kind"] else ""
    yield f"prompt {number}: id {row['id']!r}{kind}"
    for message in row["messages"]:
        yield f"  {message['role']}: {message['content']!r}"
    for turn in row["turns"]:
        yield f"  then user: {turn!r}"
    if row["reference"]:
        yield f"  reference: {row['reference']!r}"


def _answer(answer: dict[str, Any]) -> Iterator[str]:
    verdict = "" if "kept" not in answer else ": kept" if answer["kept"] else f": refused, {answer['reason']}"
    facts = [f"{name} {value:.3f} nats per byte" for name, value in answer.get("logprobs", {}).items()]
    facts += [f"judge {answer['score']:g}"] if answer.get("score") is not None else []
    yield f"answer {answer['sample']} of {answer['writer']}{verdict}" + (f" ({', '.join(facts)})" if facts else "")
    for message in answer["messages"]:
        if "reasoning" in message:
            yield f"  reasoning: {message['reasoning']!r}"
        if message["content"]:
            yield f"  content: {message['content']!r}"
        for call in message.get("tool_calls", []):
            yield f"  calls {call['function']['name']}({json.dumps(call['function']['arguments'], ensure_ascii=False)})"
    if answer.get("fault"):
        yield f"  {answer['fault']}: {answer.get('shown', '')!r}"
