"""One model's figures: a model, its held-out tokens and questions in; nats of each dialogue and answers out.

What is measured is kept in `models/ID.KEY.json` of the report folder, so that a killed evaluation goes on with the model
it was in. Knows nothing about comparisons between models.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fusechat import artifact, model_files
from fusechat.artifact import Artifact
from fusechat.chat_template import load_tokenizer
from fusechat.config import EvaluationSection, RunConfig
from fusechat.dialogues import Dialogue, Message
from fusechat.tokenization import tokenize_prompt
from fusechat.tokens import Tokens

from . import harness
from .answers import greedy_answers, stop_ids
from .held_out_loss import dialogue_nats
from .models import MeasuredModel, load_network, memory_errors
from .row_divergence import dialogue_divergences
from .row_sample import RowSample

SAMPLED_ROLES = ("pivot", "sft", "fused")
"""Roles of the models that answer the sample prompts."""
HARNESS_BATCH = 8
"""Requests of one batch of the harness."""


@dataclass(frozen=True)
class Questions:
    """What the models are asked.

    `exact`: (number of the held-out dialogue, messages before its last answer, that answer); `samples`: prompts.
    """

    exact: tuple[tuple[int, tuple[Message, ...], str], ...]
    samples: tuple[str, ...]

    @classmethod
    def of(cls, section: EvaluationSection, dialogues: Sequence[Dialogue]) -> "Questions":
        """The questions that a run file asks for."""
        exact = tuple(
            (number, dialogue.messages[:-1], dialogue.messages[-1].content)
            for number, dialogue in enumerate(dialogues)
            if dialogue.kind in section.exact_match_kinds
        )
        return cls(exact, tuple(section.samples))

    def prompts(self, role: str) -> list[tuple[Message, ...]]:
        """Messages of all questions to a model: the exact ones, then the samples if it answers them."""
        samples = self.samples if role in SAMPLED_ROLES else ()
        return [messages for _, messages, _ in self.exact] + [(Message("user", prompt),) for prompt in samples]


def measure(
    config: RunConfig,
    model: MeasuredModel,
    tokens_artifact: Artifact,
    *,
    dialogue_ids: Sequence[str],
    questions: Questions,
    sample: RowSample | None = None,
    on_tokens: Callable[[int], None] = lambda num_tokens: None,
) -> dict[str, Any]:
    """Measure one model, or read what was measured before.

    Args:
        sample: rows that a model over the pivot's vocabulary is compared with.
        on_tokens: told how many tokens were read or written; `work` of them in all.
    Returns:
        key, dtype, device, parameters, seconds, tokens, rows, `nats` (list [dialogues], null where the model has too few
        positions), `answers` (list [questions], text or null likewise) and `divergence` (teacher -> nats and rows, one
        per dialogue of the sample; empty where there is none) and `harness` (figure -> value, low, high, questions).
    """
    sample = sample if model.reader == config.pivot.name else None
    key = _key(config.evaluation, model, tokens_artifact, sample)
    # The key is part of the name, so that the runs of an ablation can share the folder.
    path = config.measured_path / f"{model.id}.{key}.json"
    tokens = Tokens.read(tokens_artifact.url)
    found = artifact.read_json(str(path))
    if found is None:
        started = time.monotonic()
        prompts = questions.prompts(model.role)
        found = {"key": key, **_figures(config, model, tokens, dialogue_ids, prompts, sample, on_tokens)}
        found["seconds"] = round(time.monotonic() - started, 3)
        artifact.write_json(str(path), found)
    else:
        on_tokens(work(tokens, questions, model.role, config.evaluation, sample))
    return found


def work(
    tokens: Tokens, questions: Questions, role: str, section: EvaluationSection, sample: RowSample | None = None
) -> int:
    """What a model has to read and to write, tokens; an answer counts as its greatest length."""
    compared = sample.num_tokens if sample and role != "source" else 0
    return tokens.num_tokens + compared + len(questions.prompts(role)) * section.max_new_tokens


def _key(section: EvaluationSection, model: MeasuredModel, tokens_artifact: Artifact, sample: RowSample | None) -> str:
    asked = section.model_dump(mode="json", include={"exact_match_kinds", "max_new_tokens", "samples", "dtype"})
    compared: dict[str, Any] = {"sample": sample.key} if sample else {}
    if section.lm_eval:
        tasks = section.model_dump(mode="json", include={"lm_eval", "lm_eval_limit"})
        compared |= {**tasks, "task_files": harness.tasks_digest(section.lm_eval_folder)}
    inputs = {"model": model.fingerprint, "tokens": tokens_artifact.fingerprint, **asked, **compared}
    return artifact.fingerprint(inputs)


def _figures(
    config: RunConfig,
    model: MeasuredModel,
    tokens: Tokens,
    dialogue_ids: Sequence[str],
    prompts: list[tuple[Message, ...]],
    sample: RowSample | None,
    on_tokens: Callable[[int], None],
) -> dict[str, Any]:
    section, template = config.evaluation, tokens.attributes["template"]
    folder = model_files.resolve_model(config.model_named(model.reader))
    tokenizer, _ = load_tokenizer(str(folder), template=template)
    with memory_errors(model):
        network = load_network(model, section.dtype)
        nats = dialogue_nats(
            network, tokens, label=model.label, dialogue_ids=dialogue_ids, batch_tokens=section.batch_tokens,
            on_batch=on_tokens,
        )  # fmt: skip
        divergences = (
            dialogue_divergences(
                network, sample, label=model.label, batch_tokens=section.batch_tokens, on_batch=on_tokens
            )
            if sample
            else {}
        )
        answers = greedy_answers(
            network, [tokenize_prompt(tokenizer, template, messages) for messages in prompts],
            stops=stop_ids(network, tokens), max_new_tokens=section.max_new_tokens, batch_tokens=section.batch_tokens,
            on_batch=lambda num_answers: on_tokens(num_answers * section.max_new_tokens),
        )  # fmt: skip
        tasks = run_harness(config, network, tokenizer, template)
    device = network.device
    return {
        "dtype": str(network.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "parameters": network.num_parameters(),
        "tokens": tokens.num_tokens,
        "rows": tokens.num_rows,
        "nats": [None if np.isnan(value) else float(value) for value in nats],
        "divergence": {
            name: {"nats": [None if np.isnan(value) else float(value) for value in sums], "rows": rows.tolist()}
            for name, (sums, rows) in divergences.items()
        },
        "harness": tasks,
        "answers": [ids if ids is None else tokenizer.decode(ids, skip_special_tokens=True) for ids in answers],
    }


def run_harness(config: RunConfig, network: Any, tokenizer: Any, template: str) -> dict[str, dict[str, Any]]:
    """The figures of `evaluation.lm_eval`; none where no task is asked for."""
    section = config.evaluation
    if not section.lm_eval:
        return {}
    return harness.run_tasks(
        network, tokenizer, template, tasks=section.lm_eval, folder=section.lm_eval_folder, limit=section.lm_eval_limit,
        batch_size=HARNESS_BATCH, seed=config.run.seed,
    )  # fmt: skip
