"""The door of the choice: the pivot's tokens and every model's rows on them in, who teaches which dialogue out.

Made once, before any target is trained, from what is on disk; one shard in memory at a time. `choice.py` has the rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from fusechat.config.layout import RunLayout
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact, storage_errors
from fusechat.storage.contracts import CHOICE, CONTRACT_VERSION, RowKind
from fusechat.storage.row_store import ATTRIBUTE, RowStore, read_array, write_array
from fusechat.storage.tokens import Tokens
from fusechat.text.dialogues import read_dialogues

from . import choice
from .choice import NOBODY
from .open_rows import open_rows
from .recipe import choice_recipe

REAL_KINDS = np.array([kind for kind in RowKind if kind.is_real], dtype=np.uint8)


@dataclass(frozen=True)
class Choice:
    """Who teaches each dialogue; `docs/contracts.md` has the arrays' units."""

    sources: list[str]
    """Names, in the order of `source_losses`."""
    source: np.ndarray
    trust: np.ndarray
    source_losses: np.ndarray
    pivot_loss: np.ndarray
    frequency_loss: np.ndarray

    @classmethod
    def read(cls, url: str) -> "Choice":
        """Read a choice artifact."""
        with storage_errors(url):
            group = zarr.open_group(store=url, mode="r")
            arrays = {name: read_array(group, name) for name in CHOICE.names}
            attributes: Any = group.attrs[ATTRIBUTE]
        CHOICE.validate(arrays, place=url)
        return cls(list(attributes["sources"]), **arrays)

    def write(self, url: str) -> None:
        """Write a choice artifact; what was there is replaced."""
        arrays = {name: getattr(self, name) for name in CHOICE.names}
        CHOICE.validate(arrays, place=url)
        with storage_errors(url):
            group = zarr.open_group(store=url, mode="a")
            for name, values in arrays.items():
                write_array(group, name, values, fill_value=CHOICE.spec(name).fill_value)
            group.attrs[ATTRIBUTE] = {
                "contract_version": CONTRACT_VERSION,
                "artifact": "choice",
                "sources": self.sources,
            }


def run(layout: RunLayout, pivot: str, sources: Sequence[str], *, progress: Progress | None = None) -> Artifact:
    """Decide who teaches which dialogue.

    Args:
        pivot, sources: names of the models.
    Raises:
        ArtifactError: rows are missing, or were made from other tokens; or another recipe's work is in the folder.
    """
    recipe = choice_recipe(pivot, sources)
    parents = {role: artifact.load(*layout.place(key)) for role, key in recipe.parents.items()}
    claim = artifact.claim(
        layout.choice_url, "choice", settings=recipe.settings, parents=parents, if_changed=layout.if_changed
    )
    if claim.artifact is not None:
        return claim.artifact
    tokens = Tokens.read(layout.tokens_url(pivot))
    pivot_rows = open_rows(parents["pivot_rows"], parents["tokens"], tokens)
    stores = [open_rows(parents[f"rows.{name}"], parents["tokens"], tokens) for name in sources]
    kinds = np.array([dialogue.kind for dialogue in read_dialogues(layout.dialogues_path / "train.jsonl")], dtype=str)
    made = decide(tokens, pivot_rows, dict(zip(sources, stores, strict=True)), kinds)
    made.write(layout.choice_url)
    table = summary(made, np.diff(tokens.row_offsets), kinds)
    if progress is not None:
        for line in table_lines(table):
            progress.say(line)
    taught = made.source != NOBODY
    return claim.finish({"dialogues": len(taught), "dialogues_taught": int(taught.sum()), "table": table})


def decide(tokens: Tokens, pivot_rows: RowStore, stores: dict[str, RowStore], kinds: np.ndarray) -> Choice:
    """Choose a teacher for every dialogue.

    Args:
        stores: source name -> its aligned rows.
        kinds: str [dialogues].
    """
    labels = tokens.token_ids[tokens.is_scored]
    dialogue = np.repeat(np.arange(tokens.num_dialogues), np.diff(tokens.row_offsets))
    by_frequency = choice.label_frequency_loss(labels)

    def per_dialogue(values: np.ndarray) -> np.ndarray:
        return np.bincount(dialogue, weights=values, minlength=tokens.num_dialogues)

    pivot_loss = per_dialogue(-pivot_rows.label_logprobs().astype(np.float64))
    sums = [_source_sums(store, labels, by_frequency, dialogue, tokens.num_dialogues) for store in stores.values()]
    losses = np.stack([loss for loss, _, _ in sums])
    frequency = per_dialogue(by_frequency)
    source = choice.choose(pivot_loss, losses, frequency)
    trust = np.zeros(tokens.num_dialogues, np.float32)
    for number, (_, entropy, loss) in enumerate(sums):
        taught = source == number
        for kind, value in choice.trust(entropy, loss, taught, kinds).items():
            trust[taught & (kinds == kind)] = value
    return Choice(list(stores), source.astype(np.int16), trust, losses, pivot_loss, frequency)


def _source_sums(
    store: RowStore, labels: np.ndarray, by_frequency: np.ndarray, dialogue: np.ndarray, num_dialogues: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float64 [dialogues] each: label loss, entropy of the rows, label loss over the rows' own outcomes; nats."""
    sums = np.zeros((3, num_dialogues))
    for shard, arrays in store.iter_shards():
        rows = store.layout.rows(shard)
        is_real = np.isin(arrays["kind"], REAL_KINDS)
        logprobs = np.where(is_real[:, None], arrays["topk_logprobs"], -np.inf)
        for number, values in enumerate(
            (
                choice.source_loss(arrays["label_logprob"], is_real, by_frequency[rows]),
                choice.row_entropy(logprobs),
                choice.row_label_loss(arrays["topk_ids"], logprobs, labels[rows]),
            )
        ):
            sums[number] += np.bincount(dialogue[rows], weights=values, minlength=num_dialogues)
    return sums[0], sums[1], sums[2]


def summary(made: Choice, rows: np.ndarray, kinds: np.ndarray) -> list[dict[str, Any]]:
    """Who teaches what: one record per kind and teacher, those that teach nothing left out.

    Args:
        rows: int [dialogues], scored tokens of each.
        kinds: str [dialogues].
    """
    table = []
    for kind in np.unique(kinds):
        for number, name in [*enumerate(made.sources), (NOBODY, None)]:
            members = (kinds == kind) & (made.source == number)
            if members.any():
                table.append(
                    {
                        "kind": str(kind), "source": name, "dialogues": int(members.sum()),
                        "tokens": int(rows[members].sum()),
                        "trust": None if name is None else round(float(made.trust[members][0]), 4),
                    }
                )  # fmt: skip
    return table


def table_lines(table: list[dict[str, Any]]) -> list[str]:
    """The summary for people."""
    return [
        f"{record['kind'] or 'dialogues'}: {record['source'] or 'nobody (plain SFT)'} teaches {record['dialogues']:,} dialogues, "
        f"{record['tokens']:,} tokens" + ("" if record["source"] is None else f", trust {record['trust']:.2f}")
        for record in table
    ]
