"""Invented worlds: lexicons, dialogues about them, and small models that know some of them.

The pivot speaks the common languages. Each source knows one language more (a skill), whose words have synonyms: it answers
with each as often as the world does. So what a source can teach is a distribution, of which a dialogue shows one draw.
"""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fusechat.text.dialogues import Dialogue, Message
from fusechat.text.tokenization import tokenize_dialogues

COMMONS, SKILLS = ("Aldan", "Belor", "Cirin"), ("Velan", "Korun")
NUM_NOUNS = 40
QUESTIONS = ("Say {} in {}.", "Translate {} into {}.", "What is {} in {}?", "Give the word for {} in {}.")
NEW_QUESTION = len(QUESTIONS) - 1
"""Never asked about a skill in training; everybody knows it from the common languages."""
MODEL_BATCH, WIDTH, NUM_LAYERS = 48, 160, 4
TEMPLATES = {
    "marks": "{% for m in messages %}{{ '<q>' if m['role'] == 'user' else '<a>' }}{{ m['content'] }}"
    "{{ '</s>' if m['role'] == 'assistant' else '' }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}",
    "lines": "{{ '<s>' }}{% for m in messages %}{{ '<q>' if m['role'] == 'user' else '<a>' }}\n{{ m['content'] }}"
    "{{ '</s>' if m['role'] == 'assistant' else '\n' }}{% endfor %}{% if add_generation_prompt %}<a>\n{% endif %}",
}


@dataclass(frozen=True)
class Model:
    """A small Llama: the skills it knows beside the common languages, its tokenizer, template and training steps."""

    name: str
    skills: tuple[str, ...]
    vocab_size: int
    template: str
    steps: int


PIVOT = Model("pivot", (), 600, "marks", 400)


def _sources(steps: int, knows: bool = True) -> tuple[Model, ...]:
    shapes = ((900, "lines"), (450, "marks"))
    return tuple(
        Model(skill, (skill,) if knows else (), size, template, steps)
        for skill, (size, template) in zip(SKILLS, shapes, strict=True)
    )


@dataclass(frozen=True)
class WorldSpec:
    """What makes a world: its sources, the shares of a word's synonyms, the dialogues and how long they are trained on."""

    epochs: int
    sources: tuple[Model, ...] = _sources(400)
    shares: tuple[float, ...] = (0.6, 0.25, 0.15)
    draws: int = 2
    """Dialogues per noun and skill."""
    wrong_share: float = 0.0
    """Share of the training answers in the skills that are another noun's word."""


GOOD_FOUR = (
    *_sources(400), Model("Velan-2", ("Velan",), 700, "lines", 300), Model("Korun-2", ("Korun",), 800, "lines", 300),
)  # fmt: skip
BAD = Model("bad", SKILLS, 500, "lines", 70)
WORLDS = {
    "B": WorldSpec(20),
    "Bn": WorldSpec(14, draws=3, wrong_share=0.3),
    "L": WorldSpec(20, _sources(70)),
    "N": WorldSpec(20, _sources(400, knows=False)),
    "S5": WorldSpec(20, (*GOOD_FOUR, BAD)),
    "D": WorldSpec(20, shares=(1.0,)),
}
"""Base; 30 % wrong answers; poor sources; sources that know nothing more; five sources, one bad; one right answer."""


class World:
    """Lexicons of one seed: the same for every world whose words have as many synonyms."""

    def __init__(self, seed: int, spec: WorldSpec) -> None:
        self.random, self.spec = random.Random(seed), spec
        words = self._invent(NUM_NOUNS * (1 + len(COMMONS) + len(spec.shares) * len(SKILLS)))
        self.nouns = [next(words) for _ in range(NUM_NOUNS)]
        self.lexicons: dict[str, dict[str, list[str]]] = {
            language: {noun: [next(words)] for noun in self.nouns} for language in COMMONS
        }
        for skill in SKILLS:
            self.lexicons[skill] = {noun: [next(words) for _ in spec.shares] for noun in self.nouns}

    def _invent(self, count: int) -> Iterator[str]:
        syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
        words: dict[str, None] = {}
        while len(words) < count:
            words["".join(self.random.choices(syllables, k=self.random.choice((2, 3))))] = None
        return iter(words)

    def shares_of(self, lexicon: str) -> tuple[float, ...]:
        """How often each word of a lexicon's entries is the answer."""
        return self.spec.shares if lexicon in SKILLS else (1.0,)

    def draw(self, lexicon: str, noun: str, question: int, name: str = "x", wrong_share: float = 0.0) -> Dialogue:
        """One dialogue, its answer drawn as often as the world gives it."""
        if wrong_share and self.random.random() < wrong_share:
            words = self.lexicons[lexicon][self.random.choice([other for other in self.nouns if other != noun])]
        else:
            words = self.lexicons[lexicon][noun]
        word = self.random.choices(words, self.shares_of(lexicon))[0]
        return ask(lexicon, noun, question, word, name)

    def answers_to(self, dialogue: Dialogue) -> list[str]:
        """The right words for what a dialogue asks, the most frequent first."""
        asked = dialogue.messages[0].content.strip("?.").split()
        return self.lexicons[dialogue.kind][next(noun for noun in self.nouns if noun in asked)]

    def endless(self, lexicons: tuple[str, ...]) -> Callable[[], Dialogue]:
        """Dialogues about some lexicons, with every question."""
        return lambda: self.draw(
            self.random.choice(lexicons), self.random.choice(self.nouns), self.random.randrange(len(QUESTIONS))
        )

    def training(self) -> list[Dialogue]:
        """Few dialogues: every noun `draws` times in every skill and once in every common language."""
        asked = [(skill, noun, number) for skill in SKILLS for noun in self.nouns for number in range(self.spec.draws)]
        asked += [(language, noun, 0) for language in COMMONS for noun in self.nouns]
        return [
            self.draw(
                lexicon, noun, (number + index) % NEW_QUESTION, f"train-{index}",
                self.spec.wrong_share if lexicon in SKILLS else 0.0,
            )
            for index, (lexicon, noun, number) in enumerate(asked)
        ]  # fmt: skip

    def held_out(self) -> tuple[list[Dialogue], np.ndarray, np.ndarray]:
        """Every noun and every answer to it, under a known and a new wording.

        Returns:
            the dialogues, named `known-...` and `new-...`; float64 [dialogues], how often the world gives that answer; bool
            [dialogues], whether it is the most frequent one, which alone counts as right.
        """
        dialogues: list[Dialogue] = []
        weights: list[float] = []
        is_first: list[bool] = []
        for name, question in (("new", NEW_QUESTION), ("known", 0)):
            for lexicon, entries in self.lexicons.items():
                for noun, words in entries.items():
                    for number, word in enumerate(words):
                        dialogues.append(ask(lexicon, noun, question, word, f"{name}-{len(dialogues)}"))
                        weights.append(self.shares_of(lexicon)[number])
                        is_first.append(number == 0)
        return dialogues, np.array(weights), np.array(is_first)


def ask(lexicon: str, noun: str, question: int, word: str, name: str) -> Dialogue:
    """One question and its answer."""
    asked = Message("user", QUESTIONS[question].format(noun, lexicon))
    return Dialogue(name, (asked, Message("assistant", word)), kind=lexicon)


def make_model(folder: Path, world: World, model: Model, seed: int) -> None:
    """Train a tokenizer and a model on endless dialogues, and save both; a folder that exists is whole."""
    if folder.exists():
        return
    draw = world.endless((*COMMONS, *model.skills))
    tokenizer = _tokenizer([message.content for _ in range(2000) for message in draw().messages], model)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    network = LlamaForCausalLM(config)
    _train(network, tokenizer, draw, model.steps)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    network.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    try:
        partial.rename(folder)
    except OSError:  # another worker made the same model meanwhile
        shutil.rmtree(partial)


def _tokenizer(texts: list[str], model: Model) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=model.vocab_size, special_tokens=["<s>", "</s>", "<q>", "<a>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    backend.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.chat_template = TEMPLATES[model.template]
    return fast


def _train(network: Any, tokenizer: Any, draw: Callable[[], Dialogue], steps: int) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        parts = list(tokenize_dialogues(tokenizer, tokenizer.chat_template, [draw() for _ in range(MODEL_BATCH)]))
        width = max(len(part.token_ids) for part in parts)
        ids, labels = (torch.full((len(parts), width), fill) for fill in (tokenizer.pad_token_id, -100))
        for row, part in enumerate(parts):
            token_ids = torch.from_numpy(part.token_ids.astype(np.int64))
            ids[row, : len(token_ids)] = token_ids
            labels[row, : len(token_ids)] = torch.where(torch.from_numpy(part.is_scored), token_ids, -100)
        network(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
