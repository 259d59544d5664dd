"""What `import fusechat` offers to notebooks and scripts: the stages on dialogues in memory, and finished stores.

Goes in: model folders (or hub ids) and rows as dialogue files hold them. Comes out: records of NumPy arrays. Everything is
computed by the stages' own functions; docs/python-api.md shows each once, and a test runs that page.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import AlignmentSection, EngineSection, RunConfig, load_config
from ..errors import AlignmentError, ContractError
from ..progress import Progress
from ..storage.tokens import Tokens
from ..text.dialogues import Dialogue
from .open_rows import Rows


@dataclass(frozen=True)
class Example:
    """A dialogue as a model reads it.

    `token_ids` int32 [tokens]; `is_scored` bool [tokens], true where the assistant writes what is to be learned; `spans`
    int32 [tokens, 2], bytes in `dialogue.field_bytes`, -1 for tokens that spell no field; `field` uint8 [tokens], a
    TokenField. `dialogue.fields` says which message each field is of.
    """

    dialogue: Dialogue
    token_ids: np.ndarray
    is_scored: np.ndarray
    spans: np.ndarray
    field: np.ndarray
    call_digest: int = 0
    """Of the tool calls as the template spells them; 0: none."""


def run(config: RunConfig | str | Path, *, only: str | None = None, quiet: bool = False) -> Path:
    """Run all stages of a run, or one; what is finished is skipped, as `fusechat run` does.

    Args:
        config: a run, or the path of its file.
        only: a stage, such as `extract`; those before it must be finished.
        quiet: show no progress.
    Returns:
        the run's folder.
    Raises:
        FuseChatError: what the command line ends with, with the same words.
    """
    from . import pipeline

    config = config if isinstance(config, RunConfig) else load_config(config)
    with Progress(quiet=quiet) as progress:
        pipeline.run(config, progress=progress, only=only)
    return config.run.output


def tokenize(
    model: str | Path,
    rows: Iterable[Mapping[str, Any]],
    *,
    template: str | None = None,
    template_arguments: Mapping[str, Any] | None = None,
) -> list[Example]:
    """Dialogues as a model reads them, one record per training example.

    A dialogue is one example, or several where the template hides the reasoning of earlier turns: one for each turn it shows.

    Args:
        model: Hugging Face folder or hub id.
        rows: as dialogue files hold them, such as `{"messages": [{"role": "user", "content": "Hi"}, ...]}`.
        template: text of a Jinja template; None: the model's own.
        template_arguments: what the template is told beside messages and tools, such as `{"enable_thinking": False}`.
    Raises:
        DialogueError: names the row, counted from 1, and the field.
        ModelError: a tokenizer or template that cannot be used.
    """
    return _tokenized(str(model), rows, template, template_arguments)[1]


def score(
    model: str | Path,
    rows: Iterable[Mapping[str, Any]],
    *,
    k: int = 10,
    chosen_ids: Sequence[np.ndarray] | None = None,
    template: str | None = None,
    template_arguments: Mapping[str, Any] | None = None,
    engine: EngineSection | Mapping[str, Any] | None = None,
) -> list[Rows]:
    """Rows of a teacher on given dialogues, by a vLLM engine in this process.

    Args:
        model, rows, template, template_arguments: as for `tokenize`.
        k: entries kept per row.
        chosen_ids: int [rows, m] per training example, ids whose logprobs are wanted beside the k best; -1 pads.
        engine: the engine section of a run file, or its fields.
    Returns:
        one record per training example, as `tokenize` orders them.
    Raises:
        DialogueError, ModelError: as `tokenize`; k exceeds the vocabulary.
        ContractError: chosen ids that do not fit the examples' scored tokens, or the vocabulary.
        EngineError: the engine did not start, or died.
    """
    from inference.engine.engine import Engine

    examples = tokenize(model, rows, template=template, template_arguments=template_arguments)
    if chosen_ids is not None and len(chosen_ids) != len(examples):
        raise ContractError(
            f"chosen_ids are given for {len(chosen_ids)} examples, expected {len(examples)}: one array for each that "
            "`tokenize` gives"
        )
    if not examples:
        return []
    longest = max(len(example.token_ids) for example in examples)
    section = EngineSection.model_validate(engine or {})
    with Engine(str(model), k=k, max_tokens=longest, section=section) as opened:
        scored = opened.score([one.token_ids for one in examples], [one.is_scored for one in examples], chosen_ids)
    return [Rows.of_engine(one.token_ids, one.is_scored, part) for one, part in zip(examples, scored, strict=True)]


def generate(
    model: str | Path,
    rows: Iterable[Mapping[str, Any]],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    template: str | None = None,
    template_arguments: Mapping[str, Any] | None = None,
    engine: EngineSection | Mapping[str, Any] | None = None,
) -> list[str]:
    """Answers of a model, by a vLLM engine in this process.

    Args:
        model, template, template_arguments, engine: as for `score`.
        rows: what stands before each answer, such as `{"messages": [{"role": "user", "content": "Hi"}]}`.
        max_new_tokens: longest answer, tokens.
        temperature: 0 takes the most probable token each time.
        seed: of the sampling; row i is sampled with seed + i.
    Returns:
        a text per row.
    Raises:
        DialogueError: names the row, counted from 1, and the field.
        ModelError: a model that cannot be used.
        EngineError: the engine did not start, or died.
    """
    from inference.answering.in_memory import generate_texts

    section = EngineSection.model_validate(engine or {})
    return generate_texts(
        str(model), list(rows), max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, template=template,
        template_arguments=template_arguments or {}, engine=section,
    )  # fmt: skip


def align(
    pivot: str | Path,
    source: str | Path,
    rows: Iterable[Mapping[str, Any]],
    scored: Sequence[Rows],
    *,
    alignment: AlignmentSection | Mapping[str, Any] | None = None,
) -> list[Rows]:
    """A source's rows laid on the pivot's tokens and vocabulary, both models reading their own template.

    The vocabularies are mapped by what these dialogues count, so give all that there are at once.

    Args:
        pivot, source: model folders or hub ids.
        rows: the dialogues.
        scored: what `score(source, rows)` gave.
        alignment: the alignment section of a run file, or its fields.
    Raises:
        AlignmentError: `scored` is not of these dialogues.
        DialogueError, ModelError: as `tokenize`.
    """
    from alignment.in_memory import align_rows

    rules = AlignmentSection.model_validate(alignment or {})
    pivot_read = _tokenized(str(pivot), rows, None, None)
    source_read = _tokenized(str(source), [one.dialogue.to_row() for one in pivot_read[1]], None, None)
    read = [pivot_read, source_read]
    if not len(scored) == len(source_read[1]) == len(pivot_read[1]):
        raise AlignmentError(
            f"found rows of {len(scored)} examples, expected {len(pivot_read[1])} as the pivot reads these dialogues and "
            f"{len(source_read[1])} as the source does; score the pivot's examples: [one.dialogue.to_row() for one in "
            "fusechat.tokenize(pivot, rows)]"
        )
    tokens = [_tokens(str(model), *one) for model, one in zip((pivot, source), read, strict=True)]
    names = ("topk_ids", "topk_logprobs", "label_logprob")
    arrays = {name: np.concatenate([getattr(part, name) for part in scored]) for name in names}
    tokenizers = read[0][0], read[1][0]
    ours, theirs = (tokenizer.backend_tokenizer.to_str() for tokenizer in tokenizers)
    aligned = align_rows(rules, (tokens[0], tokens[1]), tokenizers, arrays, same_tokenizer=ours == theirs)
    examples, bounds = read[0][1], tokens[0].row_offsets
    return [
        Rows(
            example.token_ids, example.is_scored, aligned.topk_ids[block], aligned.topk_logprobs[block],
            aligned.label_logprob[block], aligned.kind[block],
        )
        for example, block in zip(examples, map(slice, bounds, bounds[1:]), strict=True)
    ]  # fmt: skip


def _tokenized(
    model: str, rows: Iterable[Mapping[str, Any]], template: str | None, arguments: Mapping[str, Any] | None
) -> tuple[Any, list[Example]]:
    """A model's tokenizer, and the dialogues under it."""
    from ..text.chat_template import load_tokenizer
    from ..text.examples import tokenize_rows
    from ..text.rendered import ChatTemplate

    tokenizer, text = load_tokenizer(model, template=template)
    return tokenizer, [
        Example(dialogue, part.token_ids, part.is_scored, part.span, part.field, part.call_digest)
        for dialogue, part in tokenize_rows(tokenizer, ChatTemplate(text, arguments or {}), rows)
    ]


def _tokens(model: str, tokenizer: Any, examples: list[Example]) -> Tokens:
    """The examples as a tokens artifact in memory."""
    from transformers import AutoConfig

    size = max(int(AutoConfig.from_pretrained(model).get_text_config().vocab_size), len(tokenizer))
    offsets = np.cumsum([0, *(len(example.token_ids) for example in examples)])
    columns = {
        name: np.concatenate([getattr(one, theirs) for one in examples])
        for name, theirs in (
            ("token_ids", "token_ids"),
            ("is_scored", "is_scored"),
            ("span", "spans"),
            ("field", "field"),
        )
    }
    calls = np.array([example.call_digest for example in examples], np.uint32)
    return Tokens(**columns, call_digest=calls, offsets=offsets, attributes={"model": model, "vocab_size": size})
