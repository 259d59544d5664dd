"""The door of the choice: the pivot's tokens and every model's rows on them in, who teaches which dialogue out.

Made once, before any target is trained, from what is on disk. All dialogues are gone through once, about a million tokens
in memory at a time; of each dialogue that a source teaches one number is kept, for the median that is its trust.
`choice.py` has the rule.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fusechat.config.layout import RunLayout
from fusechat.errors import ArtifactError
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact
from fusechat.storage.contracts import says_something
from fusechat.storage.files import read_json
from fusechat.storage.row_reader import RowReader
from fusechat.storage.row_store import RowStore
from fusechat.storage.seals import check_files
from fusechat.storage.tokens_reader import TokensReader
from fusechat.storage.zarr_arrays import ranges
from fusechat.text.dialogue_set import Kinds, read_kinds
from fusechat.text.dialogues import read_dialogues

from . import choice
from .choice_artifact import writing
from .choice_table import Losses, Table, table_lines
from .open_rows import open_rows
from .recipe import choice_recipe
from .round_teachers import RoundTeachers, read_teachers

TRAIN_FILE = "train.jsonl"
ROWS_AT_ONCE = 1 << 15
"""Of a source: what is reckoned of a row takes half a kilobyte meanwhile."""


def run(
    layout: RunLayout, pivot: str, sources: Sequence[str], *, is_round: bool = False, progress: Progress | None = None
) -> Artifact:
    """Decide who teaches which dialogue.

    Args:
        pivot, sources: names of the models.
        is_round: the run is a round of another; its artifact `asked` says who teaches.
    Raises:
        ArtifactError: rows are missing, or were made from other tokens; or another recipe's work is in the folder.
    """
    recipe = choice_recipe(pivot, sources, is_round=is_round)
    parents = {role: artifact.load(*layout.place(key)) for role, key in recipe.parents.items()}
    claim = artifact.claim(
        layout.choice_url, "choice", settings=recipe.settings, parents=parents, if_changed=layout.if_changed
    )
    if claim.artifact is not None:
        return claim.artifact
    tokens = TokensReader(layout.tokens_url(pivot))
    pivot_rows = open_rows(parents["pivot_rows"], parents["tokens"], tokens)
    stores = {name: open_rows(parents[f"rows.{name}"], parents["tokens"], tokens) for name in sources}
    kinds = kinds_of(layout, tokens.num_dialogues)
    asked = (
        read_teachers(layout, read_dialogues(layout.dialogues_path / TRAIN_FILE), pivot, sources) if is_round else None
    )
    table = decide(layout.choice_url, tokens, pivot_rows, stores, kinds, asked)
    if progress is not None:
        for line in table_lines(table):
            progress.say(line)
    taught = sum(record["dialogues"] for record in table if record["source"] is not None)
    own = {} if asked is None else {"own": int(asked.is_own.sum())}
    return claim.finish({"dialogues": tokens.num_dialogues, "dialogues_taught": taught, **own, "table": table})


def kinds_of(layout: RunLayout, num_dialogues: int) -> Kinds:
    """The kinds of the training dialogues.

    Raises:
        ArtifactError: their file is not as it was written, or holds another number of them.
    """
    folder = layout.dialogues_path
    check_files(str(folder), read_json(f"{folder}/{artifact.RECORD_FILE}") or {})
    kinds = read_kinds(folder / TRAIN_FILE)
    if len(kinds.number) != num_dialogues:
        raise ArtifactError(
            f"{folder}: {TRAIN_FILE} holds {len(kinds.number):,} dialogues, {num_dialogues:,} were tokenized; run "
            f"`fusechat inspect {folder} --repair`, then start the same command again"
        )
    return kinds


def decide(
    url: str,
    tokens: TokensReader,
    pivot_rows: RowStore,
    stores: dict[str, RowStore],
    kinds: Kinds,
    asked: RoundTeachers | None = None,
) -> list[dict[str, Any]]:
    """Choose a teacher for every dialogue, and write the choice.

    Args:
        stores: source name -> its aligned rows.
        asked: who teaches in a round, where the labels do not say it.
    Returns:
        one record per kind and teacher: dialogues, tokens and trust; those that teach nothing are left out.
    """
    shown = Table(list(stores), kinds.names)
    with writing(url, list(stores), tokens.num_dialogues) as arrays:
        sources = []
        for part, losses in _losses(tokens, pivot_rows, stores):
            block = slice(part.start, part.stop)
            source = choice.choose(losses.pivot, losses.sources, losses.frequency).astype(np.int16)
            if asked is not None:
                source = asked.source[block]
            arrays["source"].add(source)
            arrays["source_losses"].add(losses.sources)
            arrays["pivot_loss"].add(losses.pivot)
            arrays["frequency_loss"].add(losses.frequency)
            arrays["is_own"].add(np.zeros(len(part), bool) if asked is None else asked.is_own[block])
            shown.add(source, kinds.number[block], losses)
            sources.append(source)
        source = np.concatenate([np.empty(0, np.int16), *sources])
        trust = (
            shown.trust() if asked is None else asked.trust_of_kinds(kinds.number, (len(kinds.names), len(stores) + 1))
        )
        for part in ranges(len(source)):
            block = slice(part.start, part.stop)
            of_dialogues = trust[kinds.number[block], source[block]] if asked is None else asked.trust[block]
            arrays["trust"].add(of_dialogues)
    return shown.records(trust)


def _losses(tokens: TokensReader, pivot_rows: RowStore, stores: dict[str, RowStore]) -> Iterator[tuple[range, Losses]]:
    """The losses of all dialogues, range by range."""
    counts = label_counts(tokens)
    pivot, sources = RowReader(pivot_rows), [RowReader(store) for store in stores.values()]
    for part in tokens.parts():
        read = tokens.read(part)
        labels, num_rows = read.token_ids[read.is_scored], np.diff(read.row_offsets)
        dialogue = np.repeat(np.arange(len(part)), num_rows)
        by_frequency = choice.loss_of_counts(labels, counts)

        def summed(values: np.ndarray, dialogue: np.ndarray = dialogue, count: int = len(part)) -> np.ndarray:
            return np.bincount(dialogue, weights=values, minlength=count)

        of_sources = [_source_sums(reader, part, read.row_offsets, labels, by_frequency) for reader in sources]
        pivot_loss = summed(-pivot.read(part)["label_logprob"].astype(np.float64))
        losses, entropy, own_loss = np.stack(of_sources, axis=1)
        yield part, Losses(losses, pivot_loss, summed(by_frequency), entropy, own_loss, num_rows)


def _source_sums(
    reader: RowReader, part: range, row_offsets: np.ndarray, labels: np.ndarray, by_frequency: np.ndarray
) -> np.ndarray:
    """float64 [3, dialogues], nats: a source's loss, the entropy of its rows, and their labels' loss over their own outcomes.

    Args:
        part: the dialogues.
        row_offsets: int64 [dialogues+1], first row of each, from 0.
        labels: int [rows]; by_frequency: float64 [rows], their loss by frequency.
    """
    sums = np.zeros((3, len(part)))
    first = 0
    while first < len(part):
        stop = int(np.searchsorted(row_offsets, row_offsets[first] + ROWS_AT_ONCE, side="right")) - 1
        stop = min(max(stop, first + 1), len(part))
        own, block = slice(row_offsets[first], row_offsets[stop]), slice(first, stop)
        rows = reader.read(part[block])
        is_real = says_something(rows["kind"])
        logprobs = np.where(is_real[:, None], rows["topk_logprobs"], -np.inf)
        of_rows = (
            choice.source_loss(rows["label_logprob"], is_real, by_frequency[own]),
            choice.row_entropy(logprobs),
            choice.row_label_loss(rows["topk_ids"], logprobs, labels[own]),
        )
        dialogue = np.repeat(np.arange(stop - first), np.diff(row_offsets[first : stop + 1]))
        for number, values in enumerate(of_rows):
            sums[number, block] = np.bincount(dialogue, weights=values, minlength=stop - first)
        first = stop
    return sums


def label_counts(tokens: TokensReader) -> np.ndarray:
    """int64 [vocabulary]: how often each id is a label."""
    counts = np.zeros(int(tokens.attributes["vocab_size"]), np.int64)
    for part in tokens.parts():
        first, last = tokens.offsets_of(part)[[0, -1]].tolist()
        arrays = tokens.read_arrays(("token_ids", "is_scored"), slice(first, last))
        counts += np.bincount(arrays["token_ids"][arrays["is_scored"]], minlength=len(counts))
    return counts
