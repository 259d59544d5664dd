"""Arms whose answers the sources wrote: one seed of one world, its prompts answered, and a student trained on that.

Each prompt is answered by the source that knows its given dialogue best (the least label loss, as the rule chooses), once:
greedily, or sampled. Students see given dialogues, written ones, or both, with the rule's rows or without, for as many
steps as the arms of `bench_fusion.py`.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from fusechat.text.dialogues import Dialogue, Message
from fusechat.text.tokenization import tokenize_prompt

from .arms import lesson_of, source_losses
from .corpus import Corpus
from .loop import Settings, train
from .seed import Seed
from .worlds import SKILLS

How = Literal["greedy", "sampled"]
HOWS: tuple[How, ...] = ("greedy", "sampled")
TEMPERATURE = 0.8
MAX_NEW_TOKENS = 16
"""An answer that has not ended by then is left out, as is an empty one; the words of the worlds take at most 8."""
DATA = ("written", "written_rows", "given_written", "given_written_rows")
ARMS = [f"{data}.{how}" for how in HOWS for data in DATA]


class WrittenSeed:
    """The arms of one seed, by their names: one of `DATA`, a full stop, one of `HOWS`."""

    def __init__(self, world: str, number: int, out: Path) -> None:
        self.seed = Seed(world, number, out)
        self.both = cache(self.make_both)

    def run(self, arm: str) -> dict[str, Any]:
        """Train and measure an arm: `figures` as of table.Figures, and `answers`: how many were kept and right."""
        data, _, how = arm.partition(".")
        if data not in DATA or how not in HOWS:
            raise ValueError(f"no arm is named {arm!r}, expected one of {', '.join(ARMS)}")
        both, given = self.both(how), self.seed.corpus
        corpus = both if data.startswith("given") else both.since(given.num_dialogues)
        lesson = lesson_of(corpus, "joint" if data.endswith("rows") else "sft")
        spec = self.seed.spec
        settings = Settings(spec.epochs, self.seed.number)
        settings = replace(settings, steps=-(-given.num_dialogues // settings.batch) * spec.epochs)
        trained = train(corpus, self.seed.pivot, lesson, settings)
        return {"figures": self.seed.measure(trained.model), "answers": self._count(both.since(given.num_dialogues))}

    def make_both(self, how: How) -> Corpus:
        given, written = self.seed.corpus.train.dialogues, self._written(how)
        if not written:
            raise ValueError(f"no answer of a source ended within {MAX_NEW_TOKENS} tokens: the sources know nothing")
        folder = self.seed.folder.with_name(f"{self.seed.number}-{how}")
        return self.seed.corpus_of([*given, *written], folder)

    def _written(self, how: How) -> list[Dialogue]:
        corpus = self.seed.corpus
        author = np.argmin(source_losses(corpus, corpus.sources), axis=0)
        dialogues: dict[int, Dialogue] = {}
        for number, (name, folder) in enumerate(self.seed.sources.items()):
            mine = np.flatnonzero(author == number).tolist()
            asked = [corpus.train.dialogues[i] for i in mine]
            for i, dialogue, answer in zip(mine, asked, answers_of(folder, asked, how, self.seed.number), strict=True):
                if answer is not None:
                    messages = (dialogue.messages[0], Message("assistant", answer))
                    dialogues[i] = replace(dialogue, id=f"{name}-{dialogue.id}", messages=messages)
        return [dialogues[i] for i in sorted(dialogues)]

    def _count(self, written: Corpus) -> dict[str, int]:
        """On the skills: `kept` answers, `right` ones (the most frequent word), `words` (any right word), `prompts`."""
        of_skills = [d for d in written.train.dialogues if d.kind in SKILLS]
        right = [
            self.seed.world.answers_to(d).index(d.messages[1].content) if self._is_word(d) else -1 for d in of_skills
        ]
        prompts = int(np.isin(self.seed.corpus.train.kind, SKILLS).sum())
        return {
            "kept": len(right), "right": right.count(0), "words": len(right) - right.count(-1), "prompts": prompts,
        }  # fmt: skip

    def _is_word(self, dialogue: Dialogue) -> bool:
        return dialogue.messages[1].content in self.seed.world.answers_to(dialogue)


@torch.inference_mode()
def answers_of(folder: Path, asked: list[Dialogue], how: How, seed: int) -> list[str | None]:
    """A model's answer to each dialogue's first message, under its own template; None: empty, or it did not end."""
    if not asked:
        return []
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    end = tokenizer.eos_token_id
    prompts = [tokenize_prompt(tokenizer, tokenizer.chat_template, dialogue.messages[:1]) for dialogue in asked]
    ids, mask = left_padded(prompts, pad=end)
    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0} if how == "sampled" else {"do_sample": False}
    # Given to `generate`, a configuration takes from the network's own what it leaves open.
    network.generation_config = GenerationConfig(
        max_new_tokens=MAX_NEW_TOKENS, eos_token_id=end, pad_token_id=end, **sampling
    )
    answers: list[str | None] = []
    for ids_of in network.generate(input_ids=ids, attention_mask=mask)[:, ids.shape[1] :].tolist():
        ended = end in ids_of
        text = str(tokenizer.decode(ids_of[: ids_of.index(end)])).strip() if ended else ""
        answers.append(text or None)
    return answers


def left_padded(prompts: Sequence[Sequence[int]], *, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [batch, width] ids that all end at the right edge, and the mask of what is no padding."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask
