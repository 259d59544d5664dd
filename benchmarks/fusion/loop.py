"""A light training loop over a corpus in memory, and the losses of a model on held-out dialogues.

The product's trainer does the same over artifacts on disk, with a fused loss (`token_loss` is checked against
`trainer.losses.fusion_loss` by a test); this one is for many short trainings of small models on one core.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from trainer.fading import Fading, Leads
from trainer.losses import Divergence, Tail, row_log_probabilities

from .corpus import Corpus, Split

Gate = Literal["none", "soft", "first_sight", "gap"]


@dataclass(frozen=True)
class Lesson:
    """What an arm teaches: a row and its weight for every target token.

    `topk_ids` int64 [rows, k], `topk_logprobs` float32 [rows, k] (nats; all -inf: no row), `weight` float64 [rows] of the
    row (the label gets the rest), `label_logprob` float64 [rows] of the row, `source` int64 [rows] (-1: no source's).
    """

    topk_ids: np.ndarray
    topk_logprobs: np.ndarray
    weight: np.ndarray
    label_logprob: np.ndarray
    source: np.ndarray
    tail: Tail = "bucket"
    divergence: Divergence = "ce"
    smoothing: float = 0.0
    """Weight of the uniform distribution, on every token; rows are not read then."""
    gate: Gate = "none"
    leads: Leads | None = None
    """Of the teachers, for the gate `gap`."""
    is_own: np.ndarray | None = None
    """bool [rows]: the student's own words, whose labels teach nothing; None: nowhere."""


@dataclass(frozen=True)
class Settings:
    """How long and how fast; `steps`: so many, whatever `epochs` says, to compare sets of different sizes."""

    epochs: int
    seed: int
    steps: int | None = None
    learning_rate: float = 1e-3
    batch: int = 32
    micro_batch: int = 32
    bfloat16: bool = False


@dataclass(frozen=True)
class Trained:
    """The student, and `open_share`: the mean gate per epoch, over the tokens that have a row."""

    model: Any
    open_share: list[float]


def token_loss(
    logits: Tensor, labels: Tensor, topk_ids: Tensor, topk_logprobs: Tensor, weight: Tensor, lesson: Lesson,
    is_own: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """float32 [rows], nats: (1 - weight) * SFT + weight * fusion; `logits` float [rows, vocabulary], the rest [rows, ...].

    Where `is_own` there is no SFT.
    """
    log_q = logits.float().log_softmax(-1)
    sft = -log_q.gather(1, labels[:, None])[:, 0]
    if lesson.smoothing:
        return (1 - lesson.smoothing) * sft - lesson.smoothing * log_q.mean(-1)
    listed = torch.isfinite(topk_logprobs)
    has_row = listed.any(1)
    log_p = row_log_probabilities(topk_logprobs, 1.0, lesson.tail)
    ids = torch.where(listed, topk_ids, topk_ids[:, :1])  # the first entry of a row is always listed
    outcomes = log_q.gather(1, ids)
    if lesson.tail == "bucket":
        outcomes = torch.cat([outcomes, log_q.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True)], 1)
    possible = torch.isfinite(log_p) & torch.isfinite(outcomes)
    p = torch.where(possible, log_p, 0).exp() * possible
    outcomes = torch.where(possible, outcomes, 0)
    if lesson.divergence == "ce":
        fusion = -(p * outcomes).sum(1)
    elif lesson.divergence == "kl":
        fusion = (p * (torch.where(possible, log_p, 0) - outcomes)).sum(1)
    else:
        fusion = (possible * outcomes.exp() * (outcomes - torch.where(possible, log_p, 0))).sum(1)
    weight = torch.where(has_row, weight, 0)
    of_label = 1 - weight if is_own is None else torch.where(is_own, 0, 1 - weight)
    return of_label * sft + weight * fusion


class Gates:
    """By how much the weights of a batch are multiplied."""

    def __init__(self, corpus: Corpus, lesson: Lesson) -> None:
        self.corpus, self.kind = corpus, lesson.gate
        first_rows = np.minimum(corpus.row_offsets[:-1], len(corpus.labels) - 1)
        source, kinds = lesson.source[first_rows], corpus.train.kind
        self.groups = [f"{source[i]}/{kinds[i]}" if source[i] >= 0 else None for i in range(corpus.num_dialogues)]
        self.row_logprob = torch.from_numpy(lesson.label_logprob).float()
        real = np.isfinite(lesson.label_logprob)
        self.real = torch.from_numpy(real)
        self.row_loss = corpus.per_dialogue(np.where(real, -lesson.label_logprob, 0.0))
        self.means: dict[str, list[float]] = {}
        self.fading = None if lesson.leads is None else Fading(lesson.leads)

    def of(self, batch: np.ndarray, rows: Tensor, dialogue: Tensor, label_logprob: Tensor) -> Tensor:
        """float [rows]; `dialogue` int64 [rows]: place in the batch; `label_logprob` float [rows], the student's."""
        if self.kind == "none":
            return torch.ones_like(label_logprob)
        if self.kind == "soft":
            return torch.sigmoid(torch.nan_to_num(self.row_logprob[rows], neginf=-1e4) - label_logprob)
        if self.fading is not None:
            return torch.from_numpy(self.fading.factors(batch)).to(label_logprob)[dialogue]
        factors = [1.0 if (group := self.groups[i]) is None else self._sign(group) for i in batch]
        return torch.tensor(factors)[dialogue]

    def _sign(self, group: str) -> float:
        return float(sum(self.means.get(group, [1.0])) >= 0)

    def observe(self, batch: np.ndarray, rows: Tensor, dialogue: Tensor, label_logprob: Tensor) -> None:
        """Count the dialogues of a batch of the first epoch."""
        losses = torch.zeros(len(batch), dtype=torch.float64)
        if self.fading is not None:
            losses.index_add_(0, dialogue, -label_logprob.double())
            self.fading.observe(batch, losses.numpy(), np.bincount(dialogue.numpy(), minlength=len(batch)))
            return
        losses.index_add_(0, dialogue, (-label_logprob * self.real[rows]).double())
        for i, loss in zip(batch, losses.tolist(), strict=True):
            if (group := self.groups[i]) is not None:
                self.means.setdefault(group, []).append(loss - float(self.row_loss[i]))

    def finish_step(self) -> None:
        """What was seen in a step counts from the next one on."""
        if self.fading is not None:
            self.fading.finish_step(lambda gaps: gaps)


def train(corpus: Corpus, student: Path, lesson: Lesson, settings: Settings) -> Trained:
    """Train the model in a folder on a lesson: AdamW, cosine, warmup 0.03, dialogues in random order."""
    torch.manual_seed(settings.seed)
    order = np.random.default_rng([settings.seed, 77])
    model = AutoModelForCausalLM.from_pretrained(student, dtype="float32").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    of_epoch = -(-corpus.num_dialogues // settings.batch)
    total = of_epoch * settings.epochs if settings.steps is None else settings.steps
    warm = max(1, int(np.ceil(0.03 * total)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: (s + 1) / warm if s < warm else 0.5 * (1 + float(np.cos(np.pi * (s - warm) / max(1, total - warm)))),
    )
    gates = Gates(corpus, lesson)
    tensors = (lesson.topk_ids, lesson.topk_logprobs, lesson.weight.astype(np.float32))
    lessons, open_share = [torch.from_numpy(array) for array in tensors], []
    own = None if lesson.is_own is None else torch.from_numpy(lesson.is_own)
    for epoch in range(-(-total // of_epoch)):
        numbers, opened, taught = order.permutation(corpus.num_dialogues), 0.0, 0
        for start in range(0, len(numbers), settings.batch)[: total - epoch * of_epoch]:
            batch = numbers[start : start + settings.batch]
            num_rows = int((corpus.row_offsets[batch + 1] - corpus.row_offsets[batch]).sum())
            for at in range(0, len(batch), settings.micro_batch):
                part = batch[at : at + settings.micro_batch]
                rows, dialogue, logits = _forward(model, corpus, part, settings.bfloat16)
                labels = torch.from_numpy(corpus.labels)[rows]
                mine = logits.detach().float().log_softmax(-1).gather(1, labels[:, None])[:, 0]
                ids, logprobs, weight = (tensor[rows] for tensor in lessons)
                factor = gates.of(part, rows, dialogue, mine)
                opened += float(factor[weight > 0].sum())
                taught += int((weight > 0).sum())
                mine_alone = None if own is None else own[rows]
                loss = token_loss(logits, labels, ids, logprobs, weight * factor, lesson, mine_alone)
                (loss.sum() / num_rows).backward()
                if epoch == 0:
                    gates.observe(part, rows, dialogue, mine)
            gates.finish_step()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        open_share.append(opened / max(taught, 1))
    return Trained(model.eval(), open_share)


def _forward(model: Any, corpus: Corpus, batch: np.ndarray, bfloat16: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of the batch's rows, the place of each one's dialogue in the batch, and the logits [rows, vocabulary]."""
    offsets, row_offsets = corpus.train.offsets, corpus.row_offsets
    lengths = offsets[batch + 1] - offsets[batch]
    ids = torch.zeros((len(batch), int(lengths.max())), dtype=torch.long)
    for place, i in enumerate(batch):
        ids[place, : lengths[place]] = torch.from_numpy(corpus.train.token_ids[offsets[i] : offsets[i + 1]])
    rows = torch.from_numpy(np.concatenate([np.arange(row_offsets[i], row_offsets[i + 1]) for i in batch]))
    dialogue = torch.from_numpy(np.repeat(np.arange(len(batch)), row_offsets[batch + 1] - row_offsets[batch]))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state  # padding stands right of what is read
        logits = model.lm_head(hidden[dialogue, torch.from_numpy(corpus.position)[rows] - 1])
    return rows, dialogue, logits


@torch.inference_mode()
def held_out_losses(model: Any, split: Split, batch: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Losses of the answers, float64 [dialogues] nats, and whether greedy decoding gives each one, bool [dialogues].

    Greedy decoding gives an answer exactly where every label is the most probable token after those before it.
    """
    nats, exact = [], []
    for start in range(0, len(split.offsets) - 1, batch):
        bounds = split.offsets[start : start + batch + 1]
        width, num = int(np.diff(bounds).max()), len(bounds) - 1
        ids, target = torch.zeros((num, width), dtype=torch.long), torch.zeros((num, width), dtype=torch.bool)
        for i in range(num):
            where = slice(bounds[i], bounds[i + 1])
            ids[i, : bounds[i + 1] - bounds[i]] = torch.from_numpy(split.token_ids[where])
            target[i, : bounds[i + 1] - bounds[i]] = torch.from_numpy(split.is_scored[where])
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        dialogue, position = torch.nonzero(target[:, 1:], as_tuple=True)
        logits = model.lm_head(hidden[dialogue, position]).float()
        labels = ids[dialogue, position + 1]
        loss = -logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
        nats.append(torch.zeros(num).index_add_(0, dialogue, loss))
        wrong = (logits.argmax(-1) != labels).float()
        exact.append(torch.zeros(num).index_add_(0, dialogue, wrong) == 0)
    return torch.cat(nats).double().numpy(), torch.cat(exact).numpy()
