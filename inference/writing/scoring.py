"""What other models think of the answers: answers in; per scorer the mean logprob of each answer that it did not write out.

The answers become dialogues of a tokens artifact per scorer, whose rows are extracted like any others (one entry a row: only the
labels' logprobs are read). So scoring resumes, is placed and is tried again like extraction.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from fusechat.config import ClusterSection, ExtractionSection
from fusechat.config.layout import RunLayout
from fusechat.errors import ConfigError
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens_reader import TokensReader
from fusechat.storage.work import Work
from fusechat.text.chat_template import load_tokenizer
from fusechat.text.dialogues import Dialogue
from fusechat.text.model_tokens import ModelTokens
from fusechat.text.recipes import positions_behind
from fusechat.text.streamed_tokens import write_streamed

from .. import stage as extraction
from .decisions import Key, dialogue_of
from .selection import each_prompt
from .stage import Writer


def scored_layout(layout: RunLayout, scorers: Sequence[str]) -> RunLayout:
    """Where tokens and rows of the answers lie: beside the dialogues that become of them, by the scorers' names."""
    base = f"{layout.written_path}.scores"
    places = {f"{kind}/{name}": f"{base}/{kind}/{name}" for kind in ("tokens", "logprobs") for name in scorers}
    return replace(layout, places={**layout.places, **places})


def check_scorers(writers: Sequence[str], scorers: Sequence[str]) -> None:
    """Raises ConfigError where a writer would have nobody but itself to score its answers."""
    for name in writers:
        if set(scorers) <= {name}:
            raise ConfigError(
                f"writing.scorers: only {', '.join(scorers)} would score the answers of {name}, and no writer judges itself; "
                "name another model, such as the pivot"
            )


def prepare(
    layout: RunLayout,
    writers: Sequence[str],
    scorer: Writer,
    answers: Mapping[str, Artifact],
    section: ExtractionSection,
    cluster: ClusterSection,
    *,
    progress: Progress,
) -> list[Work]:
    """Tokenize the answers that a model did not write, and give what is left to score of them.

    Args:
        layout: as `scored_layout` gives it.
        answers: writer -> artifact of its answers.
    Raises:
        ArtifactError: another recipe's work stands there.
        ModelError: the scorer can read none of the answers.
    """
    model = scorer.model
    settings = {"digests": model.digests, "template": scorer.template.to_attributes()}
    place = {"model": model.section.model, "revision": model.section.revision}
    url = layout.tokens_url(model.name)
    parents = {f"answers.{name}": one for name, one in answers.items()}
    claim = artifact.claim(url, "tokens", settings=settings, parents=parents, if_changed=layout.if_changed)
    if claim.artifact is None:
        tokenizer, _ = load_tokenizer(str(model.folder), template=scorer.template.text)
        maker = ModelTokens(
            model.name, model.folder, tokenizer, scorer.template, is_pivot=False,
            positions_behind=positions_behind(section.capture),
        )  # fmt: skip
        asked = (one for _, one in candidates(layout, writers, model.name))
        sums = write_streamed(claim, maker, asked, {**place, **settings})
        if sums.num_set_aside:
            progress.say(
                f"score answers {model.name}: {sums.num_set_aside:,} of {sums.dialogues:,} answers cannot be read by it; the "
                f"first: {sums.set_aside[0][1]}"
            )
        tokens = TokensReader(url)
        claim.finish(
            {
                "dialogues": tokens.num_dialogues, "tokens": tokens.num_tokens, "rows": tokens.num_rows,
                "num_set_aside": sums.num_set_aside,
            }
        )  # fmt: skip
    return extraction.prepare(layout, model, section.model_copy(update={"k": 1}), cluster)


def logprobs_of(layout: RunLayout, writers: Sequence[str], scorer: str) -> dict[Key, float]:
    """Answer -> mean logprob, nats per byte of what its author wrote; answers that the scorer could not read are left out."""
    store = RowStore.open(layout.logprobs_url(scorer), "logprobs")
    asked = candidates(layout, writers, scorer)
    scored: dict[Key, float] = {}
    for shard in range(store.layout.num_shards):
        dialogues = store.layout.dialogues(shard)
        labels, offsets = store.label_logprobs(shard).astype(np.float64), store.row_offsets_of(dialogues)
        for start, stop in pairwise((offsets - offsets[0]).tolist()):
            key, dialogue = next(asked)
            own = labels[start:stop]
            if len(own) and np.isfinite(own).all():
                scored[key] = float(own.sum()) / max(1, dialogue.target_bytes)
    return scored


def by_answer(scored: Mapping[str, Mapping[Key, float]]) -> dict[Key, dict[str, float]]:
    """Scorer -> answer -> logprob, the other way round."""
    turned: dict[Key, dict[str, float]] = {}
    for name, of_scorer in scored.items():
        for key, value in of_scorer.items():
            turned.setdefault(key, {})[name] = value
    return turned


def candidates(layout: RunLayout, writers: Sequence[str], scorer: str) -> Iterator[tuple[Key, Dialogue]]:
    """The whole answers that a model did not write, as dialogues, in a fixed order, read one prompt after the other."""
    return (
        ((prompt.id, answer.writer, answer.sample), dialogue_of(prompt, answer))
        for prompt, answers in each_prompt(layout, writers)
        for answer in answers
        if answer.writer != scorer and not answer.fault
    )
