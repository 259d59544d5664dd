"""How much there is to read: counted where the dialogues are tokenized, else estimated from the files' bytes."""

import itertools
from dataclasses import dataclass
from pathlib import Path

from ...config import RunConfig
from ...errors import DialogueError
from ...storage.artifact import RECORD_FILE
from ...storage.files import read_json
from ...text.dialogues import Dialogue, read_dialogues
from ...text.json_object import json_text
from ...text.prompts import read_prompts
from ...text.table_rows import HUB

SAMPLE_DIALOGUES = 2000
"""Of a JSON Lines file; the rest is taken to be alike."""
TEMPLATE_TOKENS = 6
"""That a chat template puts around one message, about."""


@dataclass(frozen=True)
class Volume:
    """What one model reads in a pass over the training dialogues."""

    tokens: int
    rows: int
    """Target tokens: what the assistant says."""
    dialogues: int
    basis: str
    """`counted`, `estimated from bytes` or `given`."""

    @property
    def mean_context(self) -> float:
        """Mean number of tokens that a token attends to; half a dialogue, as if all were of one length."""
        return self.tokens / max(1, self.dialogues) / 2


def known_volume(config: RunConfig, name: str) -> Volume | None:
    """What the named model reads, where the run file gives it or its dialogues are tokenized."""
    section = config.plan
    if section.tokens is not None:
        dialogues = max(1, round(section.tokens / section.tokens_per_dialogue))
        return Volume(section.tokens, round(section.tokens * section.response_share), dialogues, "given")
    record = read_json(f"{config.tokens_url(name)}/{RECORD_FILE}")
    if record is None:
        return None
    counts = record["counts"]
    return Volume(int(counts["tokens"]), int(counts["rows"]), int(counts["dialogues"]), "counted")


def estimated_volume(config: RunConfig) -> Volume:
    """From the contents' bytes of the training files, after the cut at `dialogues.max_tokens`.

    Raises:
        DialogueError: a file that is not there or cannot be read.
    """
    tokens, rows, dialogues = _written(config)
    for path in config.dialogues.train:
        if path.startswith(HUB):
            raise DialogueError(
                f"{path}: a dataset of the hub, which is not downloaded for a plan; expected plan.tokens in the run file, or "
                "the dialogues tokenized before"
            )
        dialogues_of_file = read_dialogues(path, on_bad="skip", ignore_keys=config.dialogues.ignore_keys)
        sample = itertools.islice(dialogues_of_file, _limit(path))
        counts = [_tokens_of(dialogue, config) for dialogue in sample]
        scale = _scale(path, len(counts))
        tokens += scale * sum(of_one for of_one, _ in counts)
        rows += scale * sum(said for _, said in counts)
        dialogues += scale * len(counts)
    kept = 1.0 if config.dialogues.held_out else 1 - config.dialogues.held_out_share
    return Volume(round(tokens * kept), round(rows * kept), max(1, round(dialogues * kept)), "estimated from bytes")


def asked_prompts(config: RunConfig) -> tuple[int, float]:
    """Number of the prompts, and their tokens, about; each turn counts as a prompt of its own.

    Raises:
        DialogueError: a file that cannot be read.
    """
    if not config.dialogues.prompts:
        return 0, 0.0
    prompts = read_prompts(config.dialogues.prompts, on_bad="skip")
    width, tokens = config.plan.bytes_per_token, 0.0
    for prompt in prompts:
        texts = [message.content for message in prompt.dialogue.messages] + list(prompt.turns)
        tokens += sum(len(text.encode()) / width + TEMPLATE_TOKENS for text in texts)
    return sum(1 + len(prompt.turns) for prompt in prompts), tokens


def _written(config: RunConfig) -> tuple[float, float, float]:
    """(tokens, target tokens, dialogues) that become of the prompts at most: every prompt answered, at the longest."""
    prompts, tokens = asked_prompts(config)
    section = config.writing
    most = len(config.writers) * section.samples
    per_prompt = most if section.per_prompt is None else min(section.per_prompt, most)
    answered = min(section.max_new_tokens, config.dialogues.max_tokens) * prompts * per_prompt
    return tokens * per_prompt + answered, float(answered), float(prompts * per_prompt)


def _tokens_of(dialogue: Dialogue, config: RunConfig) -> tuple[float, float]:
    """(tokens, target tokens) of one dialogue, about."""
    width = config.plan.bytes_per_token
    calls = [sum(len(call.name) + len(json_text(call.arguments)) for call in m.tool_calls) for m in dialogue.messages]
    said = sum(
        (len((m.reasoning + m.content).encode()) + of_calls) / width + 1
        for m, of_calls in zip(dialogue.messages, calls, strict=True)
        if m.role == "assistant" and m.is_trained
    )
    template_bytes = sum(calls) + sum(len(json_text(tool)) for tool in dialogue.tools)
    tokens = (len(dialogue.field_bytes) + template_bytes) / width + TEMPLATE_TOKENS * len(dialogue.messages)
    kept = min(1.0, config.dialogues.max_tokens / tokens)
    return tokens * kept, said * kept


def _limit(path: str) -> int | None:
    """Only of a JSON Lines file is it known how much of it a sample is; other formats are read whole."""
    return SAMPLE_DIALOGUES if Path(path).suffix in (".jsonl", ".ndjson") else None


def _scale(path: str, num_sampled: int) -> float:
    """Dialogues of a file per dialogue sampled."""
    if _limit(path) is None or num_sampled < SAMPLE_DIALOGUES:
        return 1.0
    with Path(path).open("rb") as file:
        sampled = sum(len(line) for line in itertools.islice(file, num_sampled))
    return max(1.0, Path(path).stat().st_size / max(1, sampled))
