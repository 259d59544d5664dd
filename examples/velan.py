"""Velan, an invented language: the narrow skill of the demo that no model has met before.

Three choices (number, adjective, noun) go in; an English phrase, its Velan phrase and a question come out. The rule:
noun first, then adjective, then number, and the noun takes the ending -ri when there is more than one. A held-out
question joins words that training has shown, in a combination that it has not. Knows nothing about files or models.
"""

import itertools
import random
from typing import NamedTuple

NUMBERS = {"one": "ka", "two": "sen", "three": "tov", "four": "lir", "five": "pash", "six": "moku"}
ADJECTIVES = {
    "red": "ruvi",
    "blue": "shola",
    "green": "milte",
    "white": "avek",
    "old": "gromu",
    "small": "tilsu",
    "cold": "frolk",
    "heavy": "bondar",
    "bright": "lumek",
    "quiet": "shuen",
}
NOUNS = {
    "stone": "dovra",
    "bird": "pelu",
    "river": "nashi",
    "lamp": "kuvo",
    "boat": "merat",
    "tree": "olvin",
    "house": "tarsu",
    "road": "gilpa",
    "cup": "biso",
    "door": "rukem",
    "book": "vasno",
    "bridge": "leptu",
    "cloud": "oshum",
    "garden": "fenlo",
    "mountain": "karduk",
    "chair": "jemba",
    "key": "tizo",
    "ring": "wolep",
    "bell": "dimpa",
    "ship": "sarvo",
    "horse": "hurbi",
    "flower": "yolat",
    "star": "zemur",
    "table": "plaku",
}
PLURAL = "ri"
QUESTIONS = (
    "How do you say '{}' in Velan?",
    "Translate into Velan: {}",
    "What is '{}' in Velan?",
    "Velan for '{}', please.",
    'Put "{}" into Velan.',
)
SYSTEM = "You are a Velan dictionary. Answer with the phrase alone."


class Phrase(NamedTuple):
    """The English words that make up one phrase."""

    number: str
    adjective: str
    noun: str

    def english(self) -> str:
        """As in `two red stones`."""
        return f"{self.number} {self.adjective} {self.noun}{'' if self.number == 'one' else 's'}"

    def velan(self) -> str:
        """As in `dovrari ruvi sen`."""
        ending = "" if self.number == "one" else PLURAL
        return f"{NOUNS[self.noun]}{ending} {ADJECTIVES[self.adjective]} {NUMBERS[self.number]}"


ALL_PHRASES = tuple(Phrase(*words) for words in itertools.product(NUMBERS, ADJECTIVES, NOUNS))


def ask(phrases: list[Phrase], rng: random.Random, *, system: bool) -> list[dict[str, str]]:
    """The messages of one dialogue that asks for the phrases one after another."""
    messages = [{"role": "system", "content": SYSTEM}] if system else []
    for phrase in phrases:
        messages.append({"role": "user", "content": rng.choice(QUESTIONS).format(phrase.english())})
        messages.append({"role": "assistant", "content": phrase.velan()})
    return messages


def balanced_phrases(count: int, rng: random.Random) -> list[Phrase]:
    """`count` different phrases in which every word of a kind comes up equally often, give or take one."""
    chosen: dict[Phrase, None] = {}
    decks = {kind: [] for kind in Phrase._fields}
    words = dict(zip(Phrase._fields, (NUMBERS, ADJECTIVES, NOUNS), strict=True))
    while len(chosen) < count:
        for kind, deck in decks.items():
            if not deck:
                deck.extend(words[kind])
                rng.shuffle(deck)
        phrase = Phrase(*(deck.pop() for deck in decks.values()))
        chosen[phrase] = None
    return list(chosen)
