"""One seed of one world: its models, its corpus, and any arm of it."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusechat.config import RunConfig
from fusechat.text.dialogues import Dialogue

from .arms import lesson_of
from .corpus import Corpus, ModelRows, read_corpus, run_stages, write_dialogues
from .loop import Lesson, Settings, held_out_losses, train
from .merges import PRODUCT, TRIED, State, fisher_of, product_merge, state_of, with_state
from .table import Figures
from .worlds import PIVOT, SKILLS, WORLDS, Model, World, make_model

CONTROL = "sft"
"""The arm that some merges start from."""


class Seed:
    """Makes what is missing; models are shared by worlds that have the same, and targets of pairs by their merges."""

    def __init__(self, world: str, number: int, out: Path) -> None:
        self.number, self.spec = number, WORLDS[world]
        models = out / "models" / f"{len(self.spec.shares)}-words" / str(number)
        models.mkdir(parents=True, exist_ok=True)
        self.folder = out / "data" / world / str(number)
        self.pivot = self._make(models, PIVOT)
        self.sources = {model.name: self._make(models, model) for model in self.spec.sources}
        self.world = World(number, self.spec)
        self.given = self.world.training()
        self._held_out, self.weights, self.is_first = self.world.held_out()
        self._targets: dict[str, State] = {}

    @cached_property
    def corpus(self) -> Corpus:
        """Of the given dialogues."""
        return self.corpus_of(self.given, self.folder)

    def corpus_of(self, training: list[Dialogue], folder: Path) -> Corpus:
        """Training dialogues and this seed's held-out ones, taken through the stages in a folder."""
        write_dialogues(folder / "train.jsonl", training)
        write_dialogues(folder / "held_out.jsonl", self._held_out)
        config = world_config(folder, self.pivot, self.sources, self.number)
        run_stages(config)
        return read_corpus(config)

    def _make(self, models: Path, model: Model) -> Path:
        name = "-".join([model.name, *model.skills, str(model.steps)])
        # The two workers may want the same model: each trains in a folder of its own, and the later one finds it made.
        make_model(models / name, World(self.number, self.spec), model, _model_seed(self.number, model))
        return models / name

    def run(self, arm: str) -> dict[str, Any]:
        """Train or merge an arm and measure it: `figures` as of table.Figures, `open_share` of the gate per epoch."""
        name, _, how = arm.partition(".")
        if how and how not in self.corpus.sources:
            return {"figures": self.measure(self._merge(name, how))}
        trained = self._train(self.lesson(arm))
        if how or arm == CONTROL:  # merges take it from here
            self._targets[arm] = state_of(trained.model)
        return {"figures": self.measure(trained.model), "open_share": trained.open_share}

    def lesson(self, arm: str) -> Lesson:
        """What an arm teaches."""
        return lesson_of(self.corpus, arm, self.oracle if arm == "oracle" else None)

    def _train(self, lesson: Lesson) -> Any:
        return train(self.corpus, self.pivot, lesson, Settings(self.spec.epochs, self.number))

    def _target(self, arm: str) -> State:
        if arm not in self._targets:
            self._targets[arm] = state_of(self._train(self.lesson(arm)).model)
        return self._targets[arm]

    def _merge(self, name: str, how: str) -> Any:
        arms = [f"{name}.{source}" for source in self.corpus.sources]
        targets = [self._target(arm) for arm in arms]
        if how in PRODUCT:
            return product_merge(how, self.pivot, targets)
        base = state_of(AutoModelForCausalLM.from_pretrained(self.pivot, dtype="float32"))
        rest: dict[str, Any] = {"control": self._target(CONTROL)} if not how.startswith("fisher") else {}
        if how.startswith("fisher"):
            models = [with_state(self.pivot, target) for target in targets]
            rest["fishers"] = [
                fisher_of(model, self.corpus, self.lesson(arm)) for model, arm in zip(models, arms, strict=True)
            ]
        return with_state(self.pivot, TRIED[how](base, targets, **rest))

    def measure(self, model: Any) -> Figures:
        """Figures of a model on the held-out dialogues, by wording and lexicon."""
        split = self.corpus.held_out
        nats, exact = held_out_losses(model, split)
        is_new = np.array([dialogue.id.startswith("new") for dialogue in split.dialogues])
        figures: Figures = {}
        for wording, mine in (("known", ~is_new), ("new", is_new)):
            figures[wording] = {}
            for lexicon in self.world.lexicons:
                of = mine & (split.kind == lexicon)
                figures[wording][lexicon] = [
                    float((self.weights * nats)[of].sum()), float((self.weights * split.num_bytes)[of].sum()),
                    int(exact[of & self.is_first].sum()), int((of & self.is_first).sum()),
                ]  # fmt: skip
        return figures

    @cached_property
    def oracle(self) -> ModelRows:
        """The world's exact distribution over the pivot's tokens; a prefix that no answer begins with has no row."""
        tokenizer = AutoTokenizer.from_pretrained(self.pivot)
        corpus, width = self.corpus, max(len(self.spec.shares), 1)
        ids = np.zeros((len(corpus.labels), width), np.int64)
        logprobs = np.full((len(corpus.labels), width), -np.inf, np.float32)
        label = np.full(len(corpus.labels), -np.inf)
        for i, dialogue in enumerate(corpus.train.dialogues):
            words = self.world.answers_to(dialogue)
            answers = [
                [*tokenizer(word, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for word in words
            ]
            start, end = corpus.row_offsets[i], corpus.row_offsets[i + 1]
            mine = corpus.labels[start:end].tolist()
            for at in range(len(mine)):
                mass: dict[int, float] = {}
                for answer, share in zip(answers, self.world.shares_of(dialogue.kind), strict=True):
                    if len(answer) > at and answer[:at] == mine[:at]:
                        mass[answer[at]] = mass.get(answer[at], 0.0) + share
                total, ranked = sum(mass.values()), sorted(mass.items(), key=lambda pair: -pair[1])
                for place, (token, share) in enumerate(ranked):
                    ids[start + at, place], logprobs[start + at, place] = token, np.log(share / total)
                if mine[at] in mass:
                    label[start + at] = np.log(mass[mine[at]] / total)
        return ModelRows(ids, logprobs, label, np.asarray(np.isfinite(logprobs).any(axis=1)))


def world_config(folder: Path, pivot: Path, sources: dict[str, Path], seed: int, k: int = 10) -> RunConfig:
    """A run in a folder that holds its dialogues, train.jsonl and held_out.jsonl."""
    return RunConfig.model_validate({
        "run": {"output": str(folder / "out"), "store": str(folder / "store"), "seed": seed},
        "pivot": {"name": "pivot", "model": str(pivot)},
        "sources": [{"name": name, "model": str(path)} for name, path in sources.items()],
        "dialogues": {
            "train": [str(folder / "train.jsonl")], "held_out": [str(folder / "held_out.jsonl")],
            "max_tokens": 128, "on_overlap": "keep",
        },
        "extraction": {"k": k},
    })  # fmt: skip


def _model_seed(number: int, model: Model) -> int:
    names = ("pivot", *SKILLS, *(f"{skill}-2" for skill in SKILLS), "bad")
    return number * 10 + names.index(model.name)
