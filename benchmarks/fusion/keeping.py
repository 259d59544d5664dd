"""How well the rules that keep written answers choose, in a world where one source knows what the other does not.

In: a seed. Out: for every rule of `inference/writing/rules`, how many prompts it keeps an answer to, and how many of these answers
are right. Every source answers every prompt about a skill, several times, sampled; each rule keeps one. Trains nothing.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusechat.text.dialogues import Dialogue, Message
from fusechat.text.prompts import Prompt
from fusechat.text.tokenization import tokenize_dialogues
from inference.writing.answers import Answer
from inference.writing.decisions import decide_all, dialogue_of
from inference.writing.rules import RULES

from .corpus import Split
from .loop import held_out_losses
from .seed import Seed
from .worlds import SKILLS
from .written import answers_of

SAMPLES = 4
RULES_TRIED: dict[str, tuple[str, dict[str, Any]]] = {
    "all": ("all", {}),
    "agreement": ("agreement", {}),
    "agreement_at_0.25": ("agreement", {"min_share": 0.25}),
    "likelihood": ("likelihood", {}),
    "reference": ("reference", {}),
}
"""Name in the results -> rule and its parameters; the references are the given dialogues' answers."""


class Keeping:
    """What the rules keep in one seed."""

    def __init__(self, world: str, number: int, out: Path) -> None:
        self.seed = Seed(world, number, out)

    def run(self, _: str) -> dict[str, Any]:
        """`rules`: as of `keeping`."""
        return {"rules": keeping(self.seed)}


def keeping(seed: Seed) -> dict[str, dict[str, int]]:
    """Name of RULES_TRIED -> `prompts` about the skills, `kept` ones, `right` (the most frequent word), `words` (any right one)."""
    asked = [dialogue for dialogue in seed.given if dialogue.kind in SKILLS]
    prompts = [Prompt(replace(d, messages=d.messages[:1]), reference=d.messages[1].content) for d in asked]
    answers = _with_scores(seed, prompts, _answers(seed, asked))
    counts = {}
    for name, (rule, parameters) in RULES_TRIED.items():
        decide = partial(RULES[rule].decide, **parameters)
        places = []
        for prompt, of_prompt in zip(prompts, answers, strict=True):
            verdicts = decide_all(prompt, of_prompt, decide, per_prompt=1, seed=seed.number)
            right = seed.world.answers_to(prompt.dialogue)
            places += [
                right.index(answer.text) if answer.text in right else -1
                for answer, verdict in zip(of_prompt, verdicts, strict=True)
                if verdict.is_kept
            ]
        counts[name] = {
            "prompts": len(prompts), "kept": len(places), "right": places.count(0), "words": len(places) - places.count(-1),
        }  # fmt: skip
    return counts


def _answers(seed: Seed, asked: list[Dialogue]) -> list[list[Answer]]:
    """Of each prompt: every source's samples."""
    answers: list[list[Answer]] = [[] for _ in asked]
    for name, folder in seed.sources.items():
        for sample in range(SAMPLES):
            texts = answers_of(folder, asked, "sampled", seed.number * SAMPLES + sample)
            for of_prompt, text in zip(answers, texts, strict=True):
                messages = () if text is None else (Message("assistant", text),)
                of_prompt.append(Answer(name, sample, messages, "" if messages else "it did not end"))
    return answers


def _with_scores(seed: Seed, prompts: list[Prompt], answers: list[list[Answer]]) -> list[list[Answer]]:
    """The same with what every other source thinks of them, nats per byte."""
    whole = [
        (number, place, dialogue_of(prompt, answer))
        for number, (prompt, of_prompt) in enumerate(zip(prompts, answers, strict=True))
        for place, answer in enumerate(of_prompt)
        if not answer.fault
    ]
    scored = [list(of_prompt) for of_prompt in answers]
    for name, folder in seed.sources.items():
        logprobs = _logprobs_per_byte(folder, [dialogue for *_, dialogue in whole])
        for (number, place, dialogue), value in zip(whole, logprobs.tolist(), strict=True):
            if dialogue.author != name:
                answer = scored[number][place]
                scored[number][place] = replace(answer, logprobs={**answer.logprobs, name: value})
    return scored


def _logprobs_per_byte(folder: Path, dialogues: list[Dialogue]) -> np.ndarray:
    """float64 [dialogues], nats: a model's mean logprob of the answers, read under its own template."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    parts = list(tokenize_dialogues(tokenizer, tokenizer.chat_template, dialogues))
    offsets = np.cumsum([0, *(len(part.token_ids) for part in parts)])
    ids = np.concatenate([part.token_ids for part in parts]).astype(np.int64)
    split = Split(ids, np.concatenate([part.is_scored for part in parts]), offsets, dialogues)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    nats: np.ndarray = -held_out_losses(network, split)[0] / split.num_bytes
    return nats
