"""The world of `benchmarks/fusion_effect.py`: invented lexicons, dialogues about them, small models that know some of them.

Everybody knows one lexicon. Each teacher knows one more, whose words have synonyms: it answers with each as often as the
world does. So what a teacher can teach is a distribution, of which a dialogue shows one draw.
"""

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

from fusechat.dialogues import Dialogue, Message
from fusechat.tokenization import tokenize_dialogues

COMMON, SKILLS = "Aldan", ("Velan", "Korun")
"""The lexicon that all models know, and one for each teacher."""
NOUNS = 40
SHARES = (0.6, 0.25, 0.15)
"""How often each synonym is the answer; the first is the one that counts as right."""
QUESTIONS = ("Say {} in {}.", "Translate {} into {}.", "What is {} in {}?", "Give the word for {} in {}.")
HELD_OUT_QUESTION = len(QUESTIONS) - 1
"""Never asked about a skill in training; everybody knows it from the common lexicon."""
TEMPLATES = {
    "marks": "{% for m in messages %}{{ '<q>' if m['role'] == 'user' else '<a>' }}{{ m['content'] }}"
    "{{ '</s>' if m['role'] == 'assistant' else '' }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}",
    "lines": "{{ '<s>' }}{% for m in messages %}{{ '<q>' if m['role'] == 'user' else '<a>' }}\n{{ m['content'] }}"
    "{{ '</s>' if m['role'] == 'assistant' else '\n' }}{% endfor %}{% if add_generation_prompt %}<a>\n{% endif %}",
}


@dataclass(frozen=True)
class ModelShape:
    """A small Llama, its vocabulary and its template."""

    vocab_size: int
    width: int
    layers: int
    template: str
    steps: int
    """Optimizer steps of 48 dialogues."""


class World:
    """Lexicons of one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        words = self._invent(NOUNS * (1 + 1 + len(SHARES) * len(SKILLS)))
        self.nouns = [next(words) for _ in range(NOUNS)]
        self.lexicons: dict[str, dict[str, list[str]]] = {COMMON: {noun: [next(words)] for noun in self.nouns}}
        for skill in SKILLS:
            self.lexicons[skill] = {noun: [next(words) for _ in SHARES] for noun in self.nouns}

    def _invent(self, count: int) -> Iterator[str]:
        syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
        found: dict[str, None] = {}
        while len(found) < count:
            found["".join(self.random.choices(syllables, k=self.random.choice((2, 3))))] = None
        return iter(found)

    def draw(self, lexicon: str, noun: str, question: int, name: str = "") -> Dialogue:
        """One dialogue, its answer drawn as often as the world gives it."""
        words = self.lexicons[lexicon][noun]
        word = self.random.choices(words, SHARES[: len(words)])[0]
        asked = Message("user", QUESTIONS[question].format(noun, lexicon))
        return Dialogue(name or "x", (asked, Message("assistant", word)), kind=lexicon)

    def endless(self, lexicons: tuple[str, ...]) -> Callable[[], Dialogue]:
        """Dialogues about some lexicons, with every question."""
        return lambda: self.draw(
            self.random.choice(lexicons), self.random.choice(self.nouns), self.random.randrange(len(QUESTIONS))
        )

    def training(self, draws: int) -> list[Dialogue]:
        """Few dialogues: every noun `draws` times in every skill and once in the common lexicon."""
        asked = [(skill, noun, number) for skill in SKILLS for noun in self.nouns for number in range(draws)]
        asked += [(COMMON, noun, 0) for noun in self.nouns]
        return [
            self.draw(lexicon, noun, (number + index) % HELD_OUT_QUESTION, f"train-{index}")
            for index, (lexicon, noun, number) in enumerate(asked)
        ]

    def held_out(self) -> list[Dialogue]:
        """Every noun and every answer to it, under a question that training does not ask; see `held_out_weights`."""
        found: list[Dialogue] = []
        for lexicon, entries in self.lexicons.items():
            for noun, words in entries.items():
                for word in words:
                    asked = Message("user", QUESTIONS[HELD_OUT_QUESTION].format(noun, lexicon))
                    name = f"held-out-{len(found)}"
                    found.append(Dialogue(name, (asked, Message("assistant", word)), kind=lexicon))
        return found

    def held_out_weights(self) -> np.ndarray:
        """float64 [held-out dialogues]: how often the world gives that answer."""
        shares = [SHARES if len(words) > 1 else (1.0,) for book in self.lexicons.values() for words in book.values()]
        return np.concatenate([np.array(share) for share in shares])


def make_model(folder: Path, world: World, lexicons: tuple[str, ...], shape: ModelShape, seed: int) -> None:
    """Train a tokenizer and a model on endless dialogues about some lexicons, and save both; a folder that is there is whole."""
    draw = world.endless(lexicons)
    texts = [message.content for _ in range(2000) for message in draw().messages]
    tokenizer = _tokenizer(texts, shape)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=shape.width, intermediate_size=3 * shape.width,
        num_hidden_layers=shape.layers, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128,
        tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    _train(model, tokenizer, draw, shape)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed while saving
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)


def _tokenizer(texts: list[str], shape: ModelShape) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=shape.vocab_size, special_tokens=["<s>", "</s>", "<q>", "<a>"], show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )  # fmt: skip
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.chat_template = TEMPLATES[shape.template]
    return fast


def _train(model: Any, tokenizer: Any, draw: Callable[[], Dialogue], shape: ModelShape) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=shape.steps, pct_start=0.1)
    for _ in range(shape.steps):
        parts = list(tokenize_dialogues(tokenizer, tokenizer.chat_template, [draw() for _ in range(48)]))
        width = max(len(part.token_ids) for part in parts)
        ids, labels = (torch.full((len(parts), width), fill) for fill in (tokenizer.pad_token_id, -100))
        for row, part in enumerate(parts):
            token_ids = torch.from_numpy(part.token_ids.astype(np.int64))
            ids[row, : len(token_ids)] = token_ids
            labels[row, : len(token_ids)] = torch.where(torch.from_numpy(part.is_target), token_ids, -100)
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
