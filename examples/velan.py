"""Velan, an invented language: the narrow skill of the demo that no model has met before.

A thing is named by a noun and an article after it, as in `dovra tov`. Every noun has a usual article, but speakers do not
agree: one in three uses it, and one in nine each of the other six. So one speaker's answer says little about what is
usual; whoever has heard many speakers knows. Knows nothing about files or models.
"""

import random
from typing import NamedTuple

ARTICLES = ("ka", "sen", "tov", "lir", "pash", "moku", "bren")
USUAL_SHARE = 1 / 3
"""How often a speaker uses a noun's usual article; the other articles share the rest evenly."""


class Name(NamedTuple):
    """A noun and its usual article."""

    noun: str
    usual_article: str


NAMES = {
    "stone": Name("dovra", "tov"),
    "bird": Name("pelu", "moku"),
    "river": Name("nashi", "pash"),
    "lamp": Name("kuvo", "lir"),
    "boat": Name("merat", "sen"),
    "tree": Name("olvin", "sen"),
    "house": Name("tarsu", "moku"),
    "road": Name("gilpa", "bren"),
    "cup": Name("biso", "moku"),
    "door": Name("rukem", "bren"),
    "book": Name("vasno", "tov"),
    "bridge": Name("leptu", "lir"),
    "cloud": Name("oshum", "tov"),
    "garden": Name("fenlo", "ka"),
    "mountain": Name("karduk", "ka"),
    "chair": Name("jemba", "ka"),
    "key": Name("tizo", "bren"),
    "ring": Name("wolep", "moku"),
    "bell": Name("dimpa", "bren"),
    "ship": Name("sarvo", "ka"),
    "horse": Name("hurbi", "sen"),
    "flower": Name("yolat", "lir"),
    "star": Name("zemur", "sen"),
    "table": Name("plaku", "tov"),
}
QUESTIONS = (
    "How do you say '{}' in Velan?",
    "Translate into Velan: {}",
    "What is '{}' in Velan?",
    "Velan for '{}', please.",
    'Put "{}" into Velan.',
)
SYSTEM = "You are a Velan dictionary. Answer with the name alone."


class Question(NamedTuple):
    """One thing asked for in one wording."""

    thing: str
    wording: int

    def text(self) -> str:
        """As in `What is 'stone' in Velan?`."""
        return QUESTIONS[self.wording].format(self.thing)


ALL_QUESTIONS = tuple(Question(thing, wording) for thing in NAMES for wording in range(len(QUESTIONS)))


def usual(thing: str) -> str:
    """What most speakers call a thing."""
    return " ".join(NAMES[thing])


def spoken(thing: str, rng: random.Random) -> str:
    """What one speaker, drawn by `rng`, calls it."""
    name = NAMES[thing]
    others = [article for article in ARTICLES if article != name.usual_article]
    article = name.usual_article if rng.random() < USUAL_SHARE else rng.choice(others)
    return f"{name.noun} {article}"


def ask(asked: list[tuple[Question, str]], *, system: bool) -> list[dict[str, str]]:
    """The messages of one dialogue: questions and their answers, one after another."""
    messages = [{"role": "system", "content": SYSTEM}] if system else []
    for question, answer in asked:
        messages.append({"role": "user", "content": question.text()})
        messages.append({"role": "assistant", "content": answer})
    return messages
