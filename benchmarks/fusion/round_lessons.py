"""What a round teaches: the corpus of the student's answers and what the sources say of them in; a lesson, and parts of both, out."""

from dataclasses import replace

import numpy as np

from fusechat.storage.contracts import MIN_TAIL_MASS

from .corpus import Corpus, ModelRows, Split
from .loop import Lesson


def lesson_from(corpus: Corpus, source: np.ndarray, weight: np.ndarray) -> Lesson:
    """Each answer's rows from its source, int [dialogues] (-1: none), `weight` float [dialogues]."""
    of_row, num_rows = source[corpus.dialogue], len(corpus.labels)
    width = max(corpus.rows[name].topk_ids.shape[1] for name in corpus.sources)
    ids, logprobs = np.zeros((num_rows, width), np.int64), np.full((num_rows, width), -np.inf, np.float32)
    label = np.full(num_rows, -np.inf)
    for number, name in enumerate(corpus.sources):
        rows, k = corpus.rows[name], corpus.rows[name].topk_ids.shape[1]
        mine = (of_row == number) & rows.is_real
        ids[mine, :k], logprobs[mine, :k], label[mine] = (
            rows.topk_ids[mine],
            rows.topk_logprobs[mine],
            rows.label_logprob[mine],
        )
    return Lesson(ids, logprobs, np.where(of_row >= 0, weight[corpus.dialogue], 0.0), label, of_row)


def read_until(corpus: Corpus, lesson: Lesson, least: float) -> Lesson:
    """No rows behind the first token of a dialogue whose probability under its source is below `least`."""
    strayed = (lesson.label_logprob < np.log(least)).astype(np.int64)
    before = np.cumsum(strayed) - strayed  # strayed tokens before each one, over all dialogues
    before -= before[corpus.row_offsets[:-1]][corpus.dialogue]
    return replace(
        lesson, topk_logprobs=np.where(before[:, None] > 0, -np.inf, lesson.topk_logprobs).astype(np.float32)
    )


def over_own_tokens(corpus: Corpus, lesson: Lesson, k: int = 10) -> Lesson:
    """Rows over the student's own `k` most probable tokens; one that the source's wide row does not list has the floor."""
    ids = corpus.rows["pivot"].topk_ids[:, :k]
    hit = (ids[:, :, None] == lesson.topk_ids[:, None, :]) & np.isfinite(lesson.topk_logprobs)[:, None, :]
    logprobs = np.where(hit, lesson.topk_logprobs[:, None, :], -np.inf).max(axis=2)
    has_row = np.isfinite(lesson.topk_logprobs).any(axis=1, keepdims=True)
    logprobs = np.where(has_row, np.maximum(logprobs, np.log(MIN_TAIL_MASS)), -np.inf)
    return replace(lesson, topk_ids=ids, topk_logprobs=logprobs.astype(np.float32))


def part_of(corpus: Corpus, lesson: Lesson, dialogues: np.ndarray) -> tuple[Corpus, Lesson]:
    """Some dialogues of a corpus and their lesson."""
    offsets, row_offsets = corpus.train.offsets, corpus.row_offsets
    tokens = np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in dialogues])
    rows = np.concatenate([np.arange(row_offsets[i], row_offsets[i + 1]) for i in dialogues])
    split = Split(
        corpus.train.token_ids[tokens], corpus.train.is_scored[tokens],
        np.concatenate([[0], np.cumsum(np.diff(offsets)[dialogues])]), [corpus.train.dialogues[i] for i in dialogues],
    )  # fmt: skip
    pivot = corpus.rows["pivot"]
    cut = ModelRows(*(getattr(pivot, name)[rows] for name in ("topk_ids", "topk_logprobs", "label_logprob", "is_real")))
    part = Corpus(split, corpus.held_out, {"pivot": cut}, ())
    names = ("topk_ids", "topk_logprobs", "weight", "label_logprob", "source")
    return part, replace(lesson, **{name: getattr(lesson, name)[rows] for name in names})


def join(left: Corpus, mine: Lesson, right: Corpus, given: Lesson) -> tuple[Corpus, Lesson]:
    """One corpus, answers first; the divergence is the answers', and so also that of the given dialogues."""
    split = Split(
        np.concatenate([left.train.token_ids, right.train.token_ids]),
        np.concatenate([left.train.is_scored, right.train.is_scored]),
        np.concatenate([left.train.offsets, left.train.offsets[-1] + right.train.offsets[1:]]),
        left.train.dialogues + right.train.dialogues,
    )
    pivots = [corpus.rows["pivot"] for corpus in (left, right)]
    pivot = ModelRows(
        _stack([rows.topk_ids for rows in pivots], 0), _stack([rows.topk_logprobs for rows in pivots], -np.inf),
        np.concatenate([rows.label_logprob for rows in pivots]), np.concatenate([rows.is_real for rows in pivots]),
    )  # fmt: skip
    is_own = np.arange(len(mine.weight) + len(given.weight)) < len(mine.weight)
    lesson = replace(
        mine, topk_ids=_stack([mine.topk_ids, given.topk_ids], 0),
        topk_logprobs=_stack([mine.topk_logprobs, given.topk_logprobs], -np.inf), is_own=is_own,
        **{name: np.concatenate([getattr(mine, name), getattr(given, name)]) for name in ("weight", "label_logprob", "source")},
    )  # fmt: skip
    return Corpus(split, left.held_out, {"pivot": pivot}, ()), lesson


def _stack(parts: list[np.ndarray], fill: float) -> np.ndarray:
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=fill) for part in parts])
