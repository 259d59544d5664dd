"""Where the truth is known: a pivot vocabulary that lacks merges of the source's, and the KL from truth of every rule.

The pivot is the source's own byte-level BPE without its last merges, so every source token is a run of pivot tokens
(merges are applied in their order: whoever stops early stands where the other passed). So what the source says next in
pivot tokens is a sum over its own full distributions: of all it could have written that reads as the pivot tokens so
far, whether it stands within a token or between two. `true_rows` adds that up literally. Within a source token the model
is also run on what the source would have written had it stopped there (`play` on the way to `playing`), if that weighs
more than `LEAST_WEIGHT`; how much was left out is reported. Where other tokens have spelled the same text as the source's
own, the source's own row stands for both: how much that is, is reported too.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alignment.rows.projection import Projection
from fusechat.storage.contracts import RowKind, says_something
from fusechat.storage.tokens import Tokens
from fusechat.text.dialogues import Dialogue

from .alignment_rows import RULES, K, project, tokens_of, vocabularies_of

LEAST_WEIGHT = 1e-3
"""Share of all that reads alike below which the model is not asked how it would go on."""
LEAST_TAIL = 1e-6
"""Mass that a rule's row is granted outside of its entries, so that no KL is infinite."""
RowOf = Callable[[tuple[int, ...]], np.ndarray]
"""Source tokens of the turn so far -> float64 [source vocabulary], the distribution of the next one."""


class Hypothesis(NamedTuple):
    """Something the source may have written that reads as the pivot tokens so far."""

    weight: float
    written: tuple[int, ...]
    """Source tokens of the turn."""
    rest: tuple[int, ...]
    """Pivot tokens of the last of them that are not read yet."""


def spellings(splits: dict[int, tuple[int, int]], size: int, pivot_size: int) -> list[tuple[int, ...]]:
    """Pivot tokens that each source token consists of.

    Args:
        splits: source id -> the two ids that its merge joins; `size`: source ids; ids below `pivot_size` are the pivot's.
    """
    pieces: list[tuple[int, ...]] = []
    for token in range(size):  # parts have smaller ids
        pieces.append((token,) if token < pivot_size else pieces[splits[token][0]] + pieces[splits[token][1]])
    return pieces


def true_rows(
    pivot_ids: Sequence[int], path: Sequence[int], pivot_size: int, spelled: Sequence[tuple[int, ...]], row_of: RowOf
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The source's distribution over the pivot's tokens at each place of a turn.

    Args:
        pivot_ids, path: the turn's target tokens in the pivot's and in the source's cut.
        spelled: pivot tokens of each source token.
    Returns:
        float64 [tokens, pivot_size], each row over what is known; float64 [tokens], the share of it that is not;
        float64 [tokens], the share before which the text stood in other tokens than the source's own.
    """
    first = np.array([tokens[0] for tokens in spelled])
    boundary = dict(zip(np.cumsum([0, *(len(spelled[v]) for v in path)]).tolist(), range(len(path) + 1), strict=True))
    held = [Hypothesis(1.0, (), ())]
    rows = np.zeros((len(pivot_ids), pivot_size))
    unknown, respelled = np.zeros(len(pivot_ids)), np.zeros(len(pivot_ids))
    for place, token in enumerate(pivot_ids):
        if place in boundary:
            own = tuple(path[: boundary[place]])
            weights = [h.weight for h in held if not h.rest]
            respelled[place] = sum(h.weight for h in held if not h.rest and h.written != own)
            held = [Hypothesis(sum(weights), own, ()), *(h for h in held if h.rest)]
        following = []
        for weight, written, rest in held:
            if rest:
                rows[place, rest[0]] += weight
                if rest[0] == token:
                    following.append(Hypothesis(weight, written, rest[1:]))
            elif weight < LEAST_WEIGHT and place not in boundary:
                unknown[place] += weight
            else:
                row = weight * row_of(written)
                rows[place] += np.bincount(first, row, pivot_size)
                following += [
                    Hypothesis(row[v], (*written, int(v)), spelled[v][1:]) for v in np.flatnonzero(first == token)
                ]
        whole = sum(h.weight for h in following)
        held = [Hypothesis(h.weight / whole, h.written, h.rest) for h in following if h.weight > 1e-7 * whole]
        rows[place] /= rows[place].sum()
    return rows, unknown, respelled


def kl_from_truth(truth: np.ndarray, projection: Projection, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Per row: KL(truth || row) in nats, total variation, and whether the rule gave a row at all.

    A rule's row is its entries and its tail, spread evenly over all other ids. Where a rule has no row, the label alone
    stands for it, as it does in training.
    """
    rows, size = truth.shape
    given = says_something(projection.kind)
    probs = np.where(np.isfinite(projection.topk_logprobs), np.exp(projection.topk_logprobs.astype(np.float64)), 0.0)
    kl, distance = np.zeros(rows), np.zeros(rows)
    for i in range(rows):
        ids, mass = (projection.topk_ids[i], probs[i]) if given[i] else (labels[i : i + 1], np.ones(1))
        ids, mass = ids[mass > 0], mass[mass > 0]
        tail = max(1.0 - mass.sum(), LEAST_TAIL)
        row = np.full(size, tail / (size - len(ids)))
        row[ids] = mass * (1.0 - tail) / mass.sum()
        some = truth[i] > 0
        kl[i] = (truth[i, some] * np.log(truth[i, some] / row[some])).sum()
        distance[i] = np.abs(truth[i] - row).sum() / 2
    return {"kl": kl, "total_variation": distance, "given": given}


def best_rows(truth: np.ndarray, labels: np.ndarray) -> Projection:
    """The K largest entries of the truth: no row of K entries and an even tail is nearer to it."""
    ids = np.argsort(-truth, axis=1)[:, :K]
    mass = np.take_along_axis(truth, ids, 1)
    own = np.log(truth[np.arange(len(truth)), labels])
    with np.errstate(divide="ignore"):
        return Projection(ids, np.log(mass), own, np.full(len(truth), RowKind.EXACT, np.uint8), 0)


def compare(
    sides: tuple[tuple[Any, Tokens], tuple[Any, Tokens]], spelled: list[tuple[int, ...]], row_of: Callable[[int], RowOf]
) -> dict[str, Any]:
    """Mean KL from truth of each rule.

    Args:
        sides: (tokenizer, tokens) of the pivot and of the source.
        row_of: dialogue -> RowOf of its (only) answer.
    """
    (_, pivot), (_, source) = sides
    size = int(pivot.attributes["vocab_size"])
    truths, unknown, respelled, top = [], [], [], []
    for dialogue in range(pivot.num_dialogues):
        turns = [tokens.token_ids[tokens.tokens_of(dialogue)][tokens.is_scored[tokens.tokens_of(dialogue)]]
                 for tokens in (pivot, source)]  # fmt: skip
        assert [u for v in turns[1] for u in spelled[v]] == turns[0].tolist(), "the pivot cuts the source's tokens"
        rows, lost, other = true_rows(turns[0].tolist(), turns[1].tolist(), size, spelled, row_of(dialogue))
        truths.append(rows)
        unknown.append(lost)
        respelled.append(other)
        path = np.stack([row_of(dialogue)(tuple(turns[1][:j].tolist())) for j in range(len(turns[1]))])
        ids = np.argsort(-path, axis=1)[:, :K]
        own = path[np.arange(len(path)), turns[1]]
        top.append((ids.astype(np.int32), np.log(np.take_along_axis(path, ids, 1)).astype(np.float32), np.log(own)))
    names = ("topk_ids", "topk_logprobs", "label_logprob")
    source_rows = {n: np.concatenate(part) for n, part in zip(names, zip(*top, strict=True), strict=True)}
    source_rows["label_logprob"] = source_rows["label_logprob"].astype(np.float32)
    truth = np.concatenate(truths)
    values: dict[str, Any] = {
        "rows": len(truth), "pivot_vocabulary": size, "unknown_mass": float(np.concatenate(unknown).mean()),
        "respelled_mass": float(np.concatenate(respelled).mean()),
    }  # fmt: skip
    labels = pivot.token_ids[pivot.is_scored]
    for rule, section in RULES.items():
        _, _, _, projection = project(section, pivot, source, source_rows, vocabularies_of(section, *sides))
        values[rule] = _means(kl_from_truth(truth, projection, labels))
    values["best of K entries"] = _means(kl_from_truth(truth, best_rows(truth, labels), labels))
    return values


def _means(parts: dict[str, np.ndarray]) -> dict[str, float]:
    given = parts["given"]
    return {
        "coverage": round(float(given.mean()), 4),
        "kl": round(float(parts["kl"].mean()), 4),
        "kl_where_given": round(float(parts["kl"][given].mean()), 4),
        "total_variation": round(float(parts["total_variation"].mean()), 4),
    }


def without_merges(folder: Path, pivot_size: int, out: Path) -> tuple[Path, list[tuple[int, ...]]]:
    """The byte-level BPE of a folder without the merges that make ids from `pivot_size` on; and its spellings.

    Raises:
        ValueError: ids that do not stand in the order of the merges.
    """
    made = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = made["model"]
    pairs = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    ids = model["vocab"]
    order = [ids["".join(pair)] for pair in pairs]
    if order != sorted(order):
        raise ValueError(f"{folder}: ids do not stand in the order of the merges, expected a BPE as trained")
    splits = {ids[left + right]: (ids[left], ids[right]) for left, right in pairs}
    model["merges"] = [list(pair) for pair in pairs if ids["".join(pair)] < pivot_size]
    model["vocab"] = {piece: i for piece, i in ids.items() if i < pivot_size}
    target = out / f"{folder.name}.{pivot_size}"
    target.mkdir(parents=True, exist_ok=True)
    (target / "tokenizer.json").write_text(json.dumps(made), encoding="utf-8")
    (target / "config.json").write_text(json.dumps({"vocab_size": pivot_size}), encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        if (folder / name).exists():
            (target / name).write_bytes((folder / name).read_bytes())
    return target, spellings(splits, len(ids), pivot_size)


class ModelRows:
    """Full distributions of a model after any tokens of an answer; those of the answer itself in one forward."""

    def __init__(self, model: Any, tokens: Tokens, dialogue: int) -> None:
        place = tokens.tokens_of(dialogue)
        ids, target = tokens.token_ids[place], tokens.is_scored[place]
        self._model = model
        self._before = ids[: int(np.argmax(target))].tolist()
        self._path = ids[target].tolist()
        self._rows = self._forward(self._path[:-1], len(self._path))
        self.asked: dict[tuple[int, ...], np.ndarray] = {}
        """What else was asked for, by the tokens."""

    def __call__(self, written: tuple[int, ...]) -> np.ndarray:
        if list(written) == self._path[: len(written)] and len(written) < len(self._path):
            return np.asarray(self._rows[len(written)])
        if written not in self.asked:
            self.asked[written] = self._forward(list(written), 1)[0]
        return self.asked[written]

    def _forward(self, written: list[int], last: int) -> np.ndarray:
        """float64 [last, vocabulary]: the distributions after the last tokens."""
        import torch

        with torch.no_grad():
            logits = self._model(torch.tensor([self._before + written]), logits_to_keep=last).logits[0]
        return torch.softmax(logits.double(), -1).numpy()


def run(models: Path, name: str, dialogues: list[Dialogue], out: Path, pivot_sizes: Sequence[int]) -> dict[str, Any]:
    """The comparison on a real model, for pivots of some sizes."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(models / name, dtype=torch.float32).eval()
    chosen = [d for d in dialogues if sum(m.role == "assistant" for m in d.messages) == 1]
    source = tokens_of(models / name, chosen)
    rows = [ModelRows(model, source[1], dialogue) for dialogue in range(len(chosen))]
    values = {}
    for size in pivot_sizes:
        folder, spelled = without_merges(models / name, size, out)
        key = f"{name}, {len(spelled):,} -> {size:,} ids"
        values[key] = compare((tokens_of(folder, chosen), source), spelled, rows.__getitem__)
        print(f"{key}: {json.dumps(values[key])}", flush=True)
    return values
