"""Ways to make one model of the targets of pairs: the product's methods, and some that were tried here.

In: state dicts of base, targets and control (all float32), and for some the diagonal Fisher information of each target on
the dialogues that its source won. Out: one state dict.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from merge.checkpoint_merge import merge_checkpoints

from .corpus import Corpus
from .loop import Lesson, _forward, token_loss

State = dict[str, Tensor]
PRODUCT: dict[str, dict[str, Any]] = {"sce": {}, "varm": {}, "linear": {}, "ties": {"density": 0.5}}


def product_merge(method: str, pivot: Path, targets: list[State]) -> Any:
    """The targets merged by one of the product's methods, through files."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for number, state in enumerate(targets):
            model = with_state(pivot, state)
            paths[f"target{number}"] = Path(folder) / f"target{number}"
            model.save_pretrained(paths[f"target{number}"])
        out = Path(folder) / "merged"
        merge_checkpoints(
            method=method, base=pivot, targets=paths, out=out, parameters=PRODUCT[method], dtype="float32", threads=1
        )
        return AutoModelForCausalLM.from_pretrained(out, dtype="float32").eval()


def bounded_sum(base: State, targets: list[State], **_: Any) -> State:
    """The sum of the changes, matrix by matrix cut to the norm of the largest of them."""

    def change(name: str) -> Tensor:
        changes = [target[name] - base[name] for target in targets]
        total = sum(changes, torch.zeros_like(base[name]))
        longest = max(float(change.norm()) for change in changes)
        return total * min(1.0, longest / max(float(total.norm()), 1e-12))

    return {name: base[name] + change(name) for name in base}


def from_control(base: State, targets: list[State], control: State, share: float = 1.0, **_: Any) -> State:
    """The control, and on it what each target has beyond it: SFT is counted once, every source's rows in full."""
    beyond = {
        name: sum((target[name] - control[name] for target in targets), torch.zeros_like(base[name])) for name in base
    }
    return {name: control[name] + share * beyond[name] for name in base}


def by_fisher(base: State, targets: list[State], fishers: list[State], per_matrix: bool = False, **_: Any) -> State:
    """The mean of the changes weighted by how much what its source won depends on each weight (or each matrix)."""

    def merged(name: str) -> Tensor:
        importance = [fisher[name].mean() if per_matrix else fisher[name] for fisher in fishers]
        total = sum(importance, torch.zeros_like(importance[0])) + 1e-20
        changes = (f * (target[name] - base[name]) for f, target in zip(importance, targets, strict=True))
        return base[name] + sum(changes, torch.zeros_like(base[name])) / total

    return {name: merged(name) for name in base}


def selected(base: State, targets: list[State], control: State, **_: Any) -> State:
    """The control, and for each weight the target's difference from it that is largest: no sum, no mean."""

    def largest(name: str) -> Tensor:
        beyond = torch.stack([target[name] - control[name] for target in targets])
        return beyond.gather(0, beyond.abs().argmax(0, keepdim=True))[0]

    return {name: control[name] + largest(name) for name in base}


TRIED: dict[str, Callable[..., State]] = {
    "bounded_sum": bounded_sum,
    "from_control": from_control,
    "from_control_0.7": lambda base, targets, **rest: from_control(base, targets, share=0.7, **rest),
    "selected": selected,
    "fisher": by_fisher,
    "fisher_matrix": lambda base, targets, **rest: by_fisher(base, targets, per_matrix=True, **rest),
}


def fisher_of(model: Any, corpus: Corpus, lesson: Lesson, batch: int = 8) -> State:
    """Mean squared gradient of the lesson's loss over batches of the dialogues that a source won."""
    won = np.unique(corpus.dialogue[lesson.source >= 0])
    sums = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    arrays = [torch.from_numpy(a) for a in (lesson.topk_ids, lesson.topk_logprobs, lesson.weight.astype(np.float32))]
    for start in range(0, len(won), batch):
        rows, _, logits = _forward(model, corpus, won[start : start + batch], bfloat16=False)
        labels = torch.from_numpy(corpus.labels)[rows]
        model.zero_grad()
        ids, logprobs, weight = (array[rows] for array in arrays)
        token_loss(logits, labels, ids, logprobs, weight, lesson).mean().backward()
        for name, value in model.named_parameters():
            sums[name] += value.grad**2
    model.zero_grad()
    return sums


def state_of(model: Any) -> State:
    """A copy of the weights; a tied head is there once."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def with_state(pivot: Path, state: State) -> Any:
    """The pivot with other weights."""
    model = AutoModelForCausalLM.from_pretrained(pivot, dtype="float32")
    model.load_state_dict(state, strict=False)
    return model.eval()
