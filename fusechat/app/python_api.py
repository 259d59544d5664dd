"""What `import fusechat` offers to notebooks and scripts: the stages on dialogues in memory, and finished stores.

Goes in: model folders (or hub ids) and rows as dialogue files hold them. Comes out: records of NumPy arrays. Everything is
computed by the stages' own functions; docs/python-api.md shows each once, and a test runs that page.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..config import AlignmentSection, EngineSection, RunConfig, load_config
from ..errors import AlignmentError, ArtifactError, DialogueError
from ..models import model_files
from ..progress import Progress
from ..storage.artifact import RECORD_FILE, read_json
from ..storage.row_store import RowStore
from ..storage.tokens import Tokens, TokensReader
from ..text.dialogues import Dialogue, parse_dialogue


@dataclass(frozen=True)
class Example:
    """A dialogue as a model reads it.

    `token_ids` int32 [tokens]; `is_scored` bool [tokens], true where an assistant's token is learned; `spans` int32
    [tokens, 2], bytes in `dialogue.content_bytes`, -1 for tokens of the template.
    """

    dialogue: Dialogue
    token_ids: np.ndarray
    is_scored: np.ndarray
    spans: np.ndarray


@dataclass(frozen=True)
class Rows:
    """Top-k rows of one dialogue's scored tokens, in their order.

    `topk_ids` int32 [rows, k]; `topk_logprobs` float32 [rows, k], nats over the whole vocabulary, descending, -inf pads;
    `label_logprob` float32 [rows], of the token that stands there; `kind` uint8 [rows], RowKind, of aligned rows only.
    `token_ids` int32 [tokens] and `is_scored` bool [tokens] are of the vocabulary that the rows are over.
    """

    token_ids: np.ndarray
    is_scored: np.ndarray
    topk_ids: np.ndarray
    topk_logprobs: np.ndarray
    label_logprob: np.ndarray
    kind: np.ndarray | None = None


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


def tokenize(model: str | Path, rows: Iterable[Mapping[str, Any]], *, template: str | None = None) -> list[Example]:
    """Dialogues as a model reads them.

    Args:
        model: Hugging Face folder or hub id.
        rows: as dialogue files hold them, such as `{"messages": [{"role": "user", "content": "Hi"}, ...]}`.
        template: text of a Jinja template; None: the model's own.
    Raises:
        DialogueError: names the row, counted from 1, and the field.
        ModelError: a tokenizer or template that cannot be used.
    """
    from ..text.chat_template import load_tokenizer
    from ..text.tokenization import tokenize_dialogues

    dialogues = _dialogues(rows)
    tokenizer, text = load_tokenizer(str(model), template=template)
    parts = tokenize_dialogues(tokenizer, text, dialogues)
    return [
        Example(dialogue, part.token_ids, part.is_target, part.content_span)
        for dialogue, part in zip(dialogues, parts, strict=True)
    ]


def score(
    model: str | Path,
    rows: Iterable[Mapping[str, Any]],
    *,
    k: int = 10,
    template: str | None = None,
    engine: EngineSection | Mapping[str, Any] | None = None,
) -> list[Rows]:
    """Rows of a teacher on given dialogues, by a vLLM engine in this process.

    Args:
        model, rows, template: as for `tokenize`.
        k: entries kept per row.
        engine: the engine section of a run file, or its fields.
    Raises:
        DialogueError, ModelError: as `tokenize`.
        TeacherError: the engine did not start, or died.
    """
    from inference.engine.teacher import Teacher

    examples = tokenize(model, rows, template=template)
    longest = max((len(example.token_ids) for example in examples), default=0)
    if not longest:
        return []
    section = EngineSection.model_validate(engine or {})
    with Teacher(str(model), k=k, max_tokens=longest, engine=section) as teacher:
        scored = teacher.score([e.token_ids for e in examples], [e.is_scored for e in examples])
    return [
        Rows(example.token_ids, example.is_scored, part.topk_ids, part.topk_logprobs, part.label_logprob)
        for example, part in zip(examples, scored, strict=True)
    ]


def align(
    pivot: str | Path,
    source: str | Path,
    rows: Iterable[Mapping[str, Any]],
    scored: Sequence[Rows],
    *,
    alignment: AlignmentSection | Mapping[str, Any] | None = None,
) -> list[Rows]:
    """A source's rows laid on the pivot's tokens and vocabulary.

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
    from alignment.in_memory import Side, align_dialogues

    rows = list(rows)
    sides = []
    for model in (pivot, source):
        examples = tokenize(model, rows)
        sides.append(Side(str(model), _vocab_size(model), [(e.token_ids, e.is_scored, e.spans) for e in examples]))
    of_source = [len(rows_.label_logprob) for rows_ in scored]
    expected = [int(is_scored.sum()) for _, is_scored, _ in sides[1].dialogues]
    if of_source != expected:
        raise AlignmentError(
            f"scored holds {sum(of_source):,} rows of {len(of_source)} dialogues, expected {sum(expected):,} of "
            f"{len(expected)}: give what score(source, rows) gave for these dialogues"
        )
    arrays = {
        name: np.concatenate([getattr(part, name) for part in scored])
        for name in ("topk_ids", "topk_logprobs", "label_logprob")
    }
    aligned = align_dialogues(*sides, arrays, AlignmentSection.model_validate(alignment or {}))
    return [
        Rows(ids, is_scored, part["topk_ids"], part["topk_logprobs"], part["label_logprob"], part["kind"])
        for (ids, is_scored, _), part in zip(sides[0].dialogues, aligned, strict=True)
    ]


class OpenRows:
    """A logprobs or aligned store, read one dialogue at a time: `len`, indexing and iteration give `Rows`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        record = read_json(f"{self.url}/{RECORD_FILE}")
        if record is None or record["kind"] not in ("logprobs", "aligned"):
            raise ArtifactError(
                f"{url}: found {'nothing finished' if record is None else record['kind']}, expected a finished store of "
                "rows, such as runs/quickstart/logprobs/smollm2"
            )
        self.record: dict[str, Any] = record
        self.store = RowStore.open(self.url, record["kind"])

    @cached_property
    def _tokens(self) -> TokensReader:
        from .inspection import tokens_url_of

        parents = self.record["parents"]
        return TokensReader(tokens_url_of(self.url, parents.get("tokens") or parents.get("pivot_tokens")))

    def __len__(self) -> int:
        return self.store.plan.num_dialogues

    def __getitem__(self, dialogue: int) -> Rows:
        if not 0 <= dialogue < len(self):
            raise IndexError(f"{self.url}: dialogue {dialogue}, expected 0 to {len(self) - 1}")
        tokens: Tokens = self._tokens.read(range(dialogue, dialogue + 1))
        arrays = self.store.read_dialogue(dialogue)
        return Rows(
            tokens.token_ids, tokens.is_target, arrays["topk_ids"].astype(np.int32), arrays["topk_logprobs"],
            arrays["label_logprob"], arrays.get("kind"),
        )  # fmt: skip

    def __iter__(self) -> Iterator[Rows]:
        return map(self.__getitem__, range(len(self)))


def open_rows(url: str | Path) -> OpenRows:
    """Open a finished store of rows.

    Args:
        url: folder or URL of a logprobs or aligned artifact.
    Raises:
        ArtifactError: there is none, it is not finished, or (when read) damaged.
    """
    return OpenRows(str(url))


def _dialogues(rows: Iterable[Mapping[str, Any]]) -> list[Dialogue]:
    dialogues = []
    for number, row in enumerate(rows, 1):
        try:
            dialogues.append(parse_dialogue(dict(row), f"row-{number}"))
        except DialogueError as error:
            raise DialogueError(f"row {number}: {error}") from None
    return dialogues


def _vocab_size(model: str | Path) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(model))
    return int(config.get_text_config().vocab_size)


__all__ = ["Example", "OpenRows", "Rows", "align", "model_files", "open_rows", "run", "score", "tokenize"]
