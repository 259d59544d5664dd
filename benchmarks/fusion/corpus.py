"""What all arms of one seed share: dialogues taken through the product's own stages, and laid flat in memory.

In: a run file's configuration whose models and dialogue files are there. Out: a `Corpus`: the pivot's tokens of both
splits and every model's rows on the training tokens. Only the rows are read off a plain transformers forward instead of
a vLLM engine, which small models do not need. Knows nothing about arms or training.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from cluster import alignment, tokenizing
from fusechat.config import RunConfig
from fusechat.models.resolved_model import resolve
from fusechat.storage.contracts import id_dtype, says_something
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens_reader import read_tokens
from fusechat.text.dialogues import Dialogue, read_dialogues
from inference import stage as inference_stage


@dataclass(frozen=True)
class ModelRows:
    """Rows of one model on the pivot's target tokens.

    `topk_ids` int64 [rows, k], `topk_logprobs` float32 [rows, k] (nats; -inf: nothing), `label_logprob` float64 [rows],
    `is_real` bool [rows]: the row says what the model said.
    """

    topk_ids: np.ndarray
    topk_logprobs: np.ndarray
    label_logprob: np.ndarray
    is_real: np.ndarray


@dataclass(frozen=True)
class Split:
    """Dialogues as the pivot reads them: `token_ids` int64 [tokens], `is_scored` bool [tokens], `offsets` int64 [dialogues+1]."""

    token_ids: np.ndarray
    is_scored: np.ndarray
    offsets: np.ndarray
    dialogues: list[Dialogue]

    @property
    def kind(self) -> np.ndarray:
        """str [dialogues]."""
        return np.array([dialogue.kind for dialogue in self.dialogues])

    @property
    def num_bytes(self) -> np.ndarray:
        """int64 [dialogues]: bytes of the answers."""
        return np.array(
            [sum(len(m.content.encode()) for m in d.messages if m.role == "assistant") for d in self.dialogues]
        )


@dataclass(frozen=True)
class Corpus:
    """Training and held-out dialogues, and `rows`: model name -> its rows; `pivot` is one of them."""

    train: Split
    held_out: Split
    rows: dict[str, ModelRows]
    sources: tuple[str, ...]

    def __post_init__(self) -> None:
        starts = self.train.offsets[:-1]
        dialogue = np.repeat(np.arange(len(starts)), np.diff(self.train.offsets))
        position = np.arange(len(dialogue)) - starts[dialogue]
        target = self.train.is_scored
        object.__setattr__(self, "dialogue", dialogue[target])
        object.__setattr__(self, "position", position[target])
        object.__setattr__(self, "labels", self.train.token_ids[target])
        counts = np.bincount(self.dialogue, minlength=self.num_dialogues)
        object.__setattr__(self, "row_offsets", np.concatenate([[0], np.cumsum(counts)]))

    dialogue: np.ndarray = field(init=False)
    """int64 [rows]: the dialogue of each target token."""
    position: np.ndarray = field(init=False)
    """int64 [rows]: where it stands in its dialogue, tokens."""
    labels: np.ndarray = field(init=False)
    """int64 [rows]."""
    row_offsets: np.ndarray = field(init=False)
    """int64 [dialogues+1]."""

    @property
    def num_dialogues(self) -> int:
        return len(self.train.offsets) - 1

    def since(self, dialogue: int) -> "Corpus":
        """The training dialogues from one on, alone."""
        tokens, rows = int(self.train.offsets[dialogue]), int(self.row_offsets[dialogue])
        train = Split(
            self.train.token_ids[tokens:], self.train.is_scored[tokens:], self.train.offsets[dialogue:] - tokens,
            self.train.dialogues[dialogue:],
        )  # fmt: skip
        kept = {
            name: ModelRows(r.topk_ids[rows:], r.topk_logprobs[rows:], r.label_logprob[rows:], r.is_real[rows:])
            for name, r in self.rows.items()
        }
        return Corpus(train, self.held_out, kept, self.sources)

    def per_dialogue(self, values: np.ndarray) -> np.ndarray:
        """float64 [dialogues]: sums of float [rows]."""
        return np.bincount(self.dialogue, weights=values, minlength=self.num_dialogues)


def run_stages(config: RunConfig) -> None:
    """Tokens, rows and aligned rows of a run; what is whole is kept."""
    tokenizing.read_dialogues(config)
    for model in config.models:
        tokenizing.tokenize(config, model.name)
        write_rows(config, model.name)
    for source in config.sources:
        alignment.run(config, source.name)


@torch.inference_mode()
def write_rows(config: RunConfig, name: str) -> None:
    """The rows of one model, off a plain forward in float32, into the store that a teacher would write."""
    model = resolve(config.model_named(name), config.digests_path)
    claim, store = inference_stage.claim_store(config.layout, model, config.extraction)
    if claim.artifact is not None:
        return
    network = AutoModelForCausalLM.from_pretrained(config.model_named(name).model, dtype="float32").eval()
    tokens = read_tokens(config.tokens_url(name))
    ids_type = id_dtype(int(tokens.attributes["vocab_size"]))
    for shard in store.missing_shards():
        parts = []
        for dialogue in store.layout.dialogues(shard):
            where = tokens.tokens_of(dialogue)
            ids = torch.from_numpy(tokens.token_ids[where].astype(np.int64))
            positions = torch.from_numpy(np.flatnonzero(tokens.is_scored[where]))
            hidden = network.model(input_ids=ids[None], use_cache=False).last_hidden_state[0, positions - 1]
            logprobs = network.lm_head(hidden).log_softmax(-1)
            top = logprobs.topk(config.extraction.k)
            label = logprobs.gather(1, ids[positions, None])[:, 0]
            parts.append((top.indices.numpy().astype(ids_type), top.values.numpy(), label.numpy()))
        names = ("topk_ids", "topk_logprobs", "label_logprob")
        store.write_shard(
            shard, {name: np.concatenate(arrays) for name, arrays in zip(names, zip(*parts, strict=True), strict=True)}
        )
    inference_stage.finish(claim, store)


def read_corpus(config: RunConfig) -> Corpus:
    """The artifacts of `run_stages`, in memory."""
    pivot = config.pivot.name
    splits = []
    for name in ("train", "held_out"):
        tokens = read_tokens(config.tokens_url(pivot, name))
        dialogues = list(read_dialogues(config.dialogues_path / f"{name}.jsonl"))
        splits.append(Split(tokens.token_ids.astype(np.int64), tokens.is_scored, tokens.offsets, dialogues))
    rows = {"pivot": _read_rows(RowStore.open(config.logprobs_url(pivot), "logprobs"), len(splits[0].dialogues))}
    for source in config.sources:
        rows[source.name] = _read_rows(
            RowStore.open(config.aligned_url(source.name), "aligned"), len(splits[0].dialogues)
        )
    return Corpus(splits[0], splits[1], rows, tuple(source.name for source in config.sources))


def _read_rows(store: RowStore, num_dialogues: int) -> ModelRows:
    parts = [store.read_dialogue(number) for number in range(num_dialogues)]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    listed = np.isfinite(arrays["topk_logprobs"]).any(axis=1)
    real = listed & says_something(arrays["kind"]) if "kind" in arrays else listed
    label = arrays["label_logprob"].astype(np.float64)
    return ModelRows(arrays["topk_ids"].astype(np.int64), arrays["topk_logprobs"].astype(np.float32), label, real)


def write_dialogues(path: Path, dialogues: Iterable[Dialogue]) -> None:
    """A dialogue file; one that says the same is left alone."""
    lines = [
        json.dumps(
            {"id": d.id, "kind": d.kind, "messages": [{"role": m.role, "content": m.content} for m in d.messages]}
        )
        for d in dialogues
    ]
    text = "\n".join(lines) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
