"""One model's figures: a model, its held-out tokens and questions in; nats of each dialogue and answers out.

What is measured is kept in `measured/ID.PART.KEY.json` beside the report's folder, the key made of all that decides that
part: a killed evaluation goes on with the part it was in. Knows nothing about comparisons between models.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fusechat.config import EvaluationSection, RunConfig
from fusechat.errors import ArtifactError, DialogueError, ModelError
from fusechat.models import model_files
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact
from fusechat.storage.seals import SEAL, is_whole, sealed
from fusechat.storage.tokens import Tokens
from fusechat.text.chat_template import load_tokenizer
from fusechat.text.dialogues import Dialogue, Message
from fusechat.text.rendered import ChatTemplate
from fusechat.text.template_heads import spoken
from fusechat.text.tokenization import tokenize_prompt

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

    `exact`: (number of the held-out dialogue, the dialogue before its last answer, that answer); `samples`: prompts.
    """

    exact: tuple[tuple[int, Dialogue, str], ...]
    samples: tuple[str, ...]

    @classmethod
    def of(cls, section: EvaluationSection, dialogues: Sequence[Dialogue]) -> "Questions":
        """The questions that a run file asks for."""
        exact = tuple(
            (number, replace(dialogue, messages=dialogue.messages[:-1]), dialogue.messages[-1].content)
            for number, dialogue in enumerate(dialogues)
            if dialogue.kind in section.exact.kinds and not dialogue.messages[-1].tool_calls
        )
        return cls(exact, tuple(section.questions.samples))

    def prompts(self, role: str) -> list[Dialogue]:
        """All questions to a model: the exact ones, then the samples if it answers them."""
        samples = self.samples if role in SAMPLED_ROLES else ()
        asked = [Dialogue("sample", (Message("user", prompt),)) for prompt in samples]
        return [question for _, question, _ in self.exact] + asked


@dataclass(frozen=True)
class _Part:
    """One part of what is measured of a model: kept in a file of its own, so that a change of another costs nothing."""

    name: str
    inputs: dict[str, Any]
    """What decides it beside the model, the held-out tokens and the dtype."""
    work: int
    """Tokens to read and to write."""
    make: Callable[[PreTrainedModel, PreTrainedTokenizerBase], dict[str, Any]]


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
        dtype, device, parameters, seconds, tokens, rows, `nats` (list [dialogues], null where the model has too few
        positions), `answers` (list [questions], text or null likewise) and `divergence` (teacher -> nats and rows, one
        per dialogue of the sample; empty where there is none) and `harness` (figure -> value, low, high, questions).
    """
    sample = sample if model.reader == config.pivot.name else None
    tokens = Tokens.read(tokens_artifact.url)
    common = {
        "model": model.fingerprint,
        "tokens": tokens_artifact.fingerprint,
        "dtype": config.evaluation.held_out.dtype,
    }
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None
    found: dict[str, Any] = {"divergence": {}, "answers": [], "harness": {}, "seconds": 0.0}
    for part in _parts(config, model, tokens, dialogue_ids, questions, sample, on_tokens):
        # The key is part of the name, so that the runs of an ablation can share the folder.
        key = artifact.fingerprint({**common, **part.inputs})
        path = str(config.measured_path / f"{model.id}.{part.name}.{key}.json")
        made = _kept(path)
        if made is None:
            started = time.monotonic()
            with memory_errors(model):
                loaded = loaded or _load(config, model, tokens)
                made = {"key": key, **part.make(*loaded), "seconds": round(time.monotonic() - started, 3)}
            artifact.write_json(path, sealed(made))
        else:
            on_tokens(part.work)
        found |= {**made, "seconds": round(found["seconds"] + made["seconds"], 3)}
    return found


def _kept(path: str) -> dict[str, Any] | None:
    """What was measured before; None where nothing was, or where the file is not as it was written: then it is measured again."""
    try:
        made: dict[str, Any] | None = artifact.read_json(path)
    except ArtifactError:
        return None
    return {key: value for key, value in made.items() if key != SEAL} if made is not None and is_whole(made) else None


def work(
    tokens: Tokens, questions: Questions, role: str, section: EvaluationSection, sample: RowSample | None = None
) -> int:
    """What a model has to read and to write, tokens; an answer counts as its greatest length."""
    compared = sample.num_tokens if sample and role != "source" else 0
    return tokens.num_tokens + compared + len(questions.prompts(role)) * section.exact.max_new_tokens


def _parts(
    config: RunConfig,
    model: MeasuredModel,
    tokens: Tokens,
    dialogue_ids: Sequence[str],
    questions: Questions,
    sample: RowSample | None,
    on_tokens: Callable[[int], None],
) -> Iterator[_Part]:
    """What the run asks for of this model."""
    section, template = config.evaluation, ChatTemplate.from_attributes(tokens.attributes)

    def loss(network: PreTrainedModel, _: PreTrainedTokenizerBase) -> dict[str, Any]:
        nats = dialogue_nats(
            network, tokens, label=model.label, dialogue_ids=dialogue_ids, batch_tokens=section.held_out.batch_tokens,
            on_batch=on_tokens,
        )  # fmt: skip
        return {**_describe(network), "tokens": tokens.num_tokens, "rows": tokens.num_rows, "nats": _nullable(nats)}

    yield _Part("loss", {}, tokens.num_tokens, loss)
    if sample:

        def divergence(network: PreTrainedModel, _: PreTrainedTokenizerBase) -> dict[str, Any]:
            compared = dialogue_divergences(
                network, sample, label=model.label, batch_tokens=section.held_out.batch_tokens, on_batch=on_tokens
            )
            by_teacher = {
                name: {"nats": _nullable(sums), "rows": rows.tolist()} for name, (sums, rows) in compared.items()
            }
            return {"divergence": by_teacher}

        yield _Part("divergence", {"sample": sample.key}, sample.num_tokens, divergence)
    if prompts := questions.prompts(model.role):

        def answers(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
            asked = [_prompt(tokenizer, template, question) for question in prompts]
            given = greedy_answers(
                network, [ids for ids in asked if ids is not None],
                stops=stop_ids(network, tokens), max_new_tokens=section.exact.max_new_tokens, batch_tokens=section.held_out.batch_tokens,
                on_batch=lambda num_answers: on_tokens(num_answers * section.exact.max_new_tokens),
            )  # fmt: skip
            found = iter(given)
            answers = [None if prompt is None else next(found) for prompt in asked]
            return {"answers": [None if ids is None else spoken(tokenizer, template, ids) for ids in answers]}

        inputs = {
            "prompts": [question.to_row() for question in prompts],
            "max_new_tokens": section.exact.max_new_tokens,
        }
        yield _Part("answers", inputs, len(prompts) * section.exact.max_new_tokens, answers)
    if section.lm_eval.tasks:
        yield _Part(
            "harness", _harness_inputs(config), 0,
            lambda network, tokenizer: {"harness": run_harness(config, network, tokenizer, template)},
        )  # fmt: skip


def _prompt(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, question: Dialogue) -> list[int] | None:
    """A question as token ids; None where the model's template does not show it, as where it has no room for an answer."""
    try:
        return tokenize_prompt(tokenizer, template, question)
    except (DialogueError, ModelError):
        return None


def _harness_inputs(config: RunConfig) -> dict[str, Any]:
    """What decides the harness's figures: its tasks' prompts change between versions, its examples are drawn by the seed."""
    section = config.evaluation.lm_eval
    return {
        "lm_eval": section.tasks,
        "lm_eval_limit": section.limit,
        "task_files": harness.tasks_digest(section.folder),
        "harness": harness.version(),
        "seed": config.run.seed,
    }


def _load(config: RunConfig, model: MeasuredModel, tokens: Tokens) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    folder = model_files.resolve_model(config.model_named(model.reader))
    tokenizer, _ = load_tokenizer(str(folder), template=tokens.attributes["template"])
    return load_network(model, config.evaluation.held_out.dtype), tokenizer


def _describe(network: PreTrainedModel) -> dict[str, Any]:
    device = network.device
    return {
        "dtype": str(network.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "parameters": network.num_parameters(),
    }


def _nullable(values: np.ndarray) -> list[float | None]:
    """The same numbers, with null for those that are none."""
    return [None if np.isnan(value) else float(value) for value in values]


def run_harness(config: RunConfig, network: Any, tokenizer: Any, template: ChatTemplate) -> dict[str, dict[str, Any]]:
    """The figures of `evaluation.lm_eval.tasks`."""
    section = config.evaluation.lm_eval
    return harness.run_tasks(
        network, tokenizer, template, tasks=section.tasks, folder=section.folder, limit=section.limit,
        batch_size=HARNESS_BATCH, seed=config.run.seed, unsafe_code=section.unsafe_code,
    )  # fmt: skip
