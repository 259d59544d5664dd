"""The arms: what teaches, and how much, at equal data and steps. The rule's arithmetic is the product's own."""

from dataclasses import replace

import numpy as np

from trainer.choice import calibration, choose, loss_of_counts, row_entropy, row_label_loss, source_loss, trust_of
from trainer.fading import Leads

from .corpus import Corpus, ModelRows
from .loop import Lesson

ROW_WEIGHT, PUBLISHED_WEIGHT = 0.9, 0.1
"""What a row gets where `sft_weight` is 0.1 (the rule), and 0.9 (published)."""
SMOOTHING = 0.1


def lesson_of(corpus: Corpus, arm: str, oracle: ModelRows | None = None) -> Lesson:
    """The lesson of an arm, by its name.

    Names: `sft`, `smoothing`, `pivot_rows`, `oracle`, `published.SOURCE` (MinCE against the pivot at 0.1), `trusted.SOURCE`
    (the rule, one source's winners), `joint_published` (the best source always, at 0.1), `joint_ungated` (the same at 0.9),
    `joint` (the rule) with `_untrusted`, `_reverse_kl`, `_where_unsure` (rows weigh less where they name one token, and
    labels more), `_where_sure` (the other way round), `_without_bad`, `_soft`, `_first_sight`, `_gap` (the gates; the last is
    the product's fading).
    """
    if arm == "sft":
        return _nothing(corpus)
    if arm == "smoothing":
        return replace(_nothing(corpus), smoothing=SMOOTHING)
    if arm == "pivot_rows":
        return _always(corpus, corpus.rows["pivot"], PUBLISHED_WEIGHT)
    if arm == "oracle":
        assert oracle is not None
        return _always(corpus, oracle, ROW_WEIGHT)
    name, _, source = arm.partition(".")
    if name == "published":
        return _published(corpus, source)
    if name == "trusted":
        return rule(corpus, teachers=(source,))
    if arm in ("joint_published", "joint_ungated"):
        best = np.argmin(source_losses(corpus, corpus.sources), axis=0)
        weight = PUBLISHED_WEIGHT if arm == "joint_published" else ROW_WEIGHT
        return _from_sources(corpus, corpus.sources, best, np.full(corpus.num_dialogues, weight))
    option = arm.removeprefix("joint").removeprefix("_")
    if option in ("soft", "first_sight"):
        return replace(rule(corpus), gate=option)  # type: ignore[arg-type]  # one of the names above
    if option == "gap":
        lesson = rule(corpus)
        return replace(lesson, gate="gap", leads=leads_of(corpus, lesson))
    if option == "without_bad":
        return rule(corpus, candidates=tuple(source for source in corpus.sources if source != "bad"))
    if option == "reverse_kl":
        return replace(rule(corpus), divergence="reverse_kl")
    if option == "untrusted":
        return rule(corpus, trusted=False)
    if option in ("where_sure", "where_unsure"):
        lesson = rule(corpus)
        sureness = np.exp(-row_entropy(lesson.topk_logprobs))  # 1: the row names one token
        return replace(lesson, weight=lesson.weight * (sureness if option == "where_sure" else 1 - sureness))
    if option:
        raise ValueError(f"no arm is named {arm!r}; see lesson_of")
    return rule(corpus)


def rule(
    corpus: Corpus,
    *,
    candidates: tuple[str, ...] | None = None,
    teachers: tuple[str, ...] | None = None,
    trusted: bool = True,
) -> Lesson:
    """Rows from the source that won each dialogue, weighted by trust.

    Args:
        candidates: sources that there are; default: all.
        teachers: those of them whose winners teach; default: all. One: a pair's target.
    """
    candidates = candidates or corpus.sources
    if (
        teachers
    ):  # a pair knows its pivot and its source; others' rows would be other artifacts, but the choice is the run's
        candidates = (*teachers, *(name for name in candidates if name not in teachers))
    winner = winners(corpus, candidates)
    num_teachers = len(teachers or candidates)
    winner = np.where(winner < num_teachers, winner, -1)
    weight, kinds = np.zeros(corpus.num_dialogues), corpus.train.kind
    for number, name in enumerate(candidates[:num_teachers]):
        mine = winner == number
        if not mine.any():
            continue
        rows = corpus.rows[name]
        entropy = np.where(rows.is_real, row_entropy(rows.topk_logprobs), 0.0)
        loss = np.where(rows.is_real, row_label_loss(rows.topk_ids, rows.topk_logprobs, corpus.labels), 0.0)
        ratio = calibration(corpus.per_dialogue(entropy), corpus.per_dialogue(loss))
        for kind in np.unique(kinds[mine]):
            own = mine & (kinds == kind)
            weight[own] = ROW_WEIGHT * (trust_of(ratio[own]) if trusted else 1.0)
    return _from_sources(corpus, candidates, winner, weight)


def leads_of(corpus: Corpus, lesson: Lesson) -> Leads:
    """By how much the teachers lead under the rule, as the product's training reads it off the choice."""
    pivot = corpus.per_dialogue(-corpus.rows["pivot"].label_logprob)
    source = lesson.source[np.minimum(corpus.row_offsets[:-1], len(corpus.labels) - 1)]
    _, kinds = np.unique(corpus.train.kind, return_inverse=True)
    group = np.where(source < 0, -1, source * (kinds.max() + 1) + kinds)
    of_sources = source_losses(corpus, corpus.sources)
    teacher = np.where(source < 0, pivot, np.take_along_axis(of_sources, np.maximum(source, 0)[None], axis=0)[0])
    return Leads(group, teacher, pivot, np.diff(corpus.row_offsets))


def winners(corpus: Corpus, candidates: tuple[str, ...]) -> np.ndarray:
    """int64 [dialogues]: which candidate teaches it; -1: nobody."""
    pivot = corpus.per_dialogue(-corpus.rows["pivot"].label_logprob)
    return choose(pivot, source_losses(corpus, candidates), corpus.per_dialogue(_by_frequency(corpus)))


def source_losses(corpus: Corpus, names: tuple[str, ...]) -> np.ndarray:
    """float64 [sources, dialogues], nats: what each source finds of the dialogues' answers."""
    by_frequency = _by_frequency(corpus)
    rows = (corpus.rows[name] for name in names)
    return np.array([corpus.per_dialogue(source_loss(r.label_logprob, r.is_real, by_frequency)) for r in rows])


def _by_frequency(corpus: Corpus) -> np.ndarray:
    """float64 [rows], nats: the loss of each label by its frequency among all."""
    return loss_of_counts(corpus.labels, np.bincount(corpus.labels))


def _published(corpus: Corpus, source: str) -> Lesson:
    """MinCE: the smaller loss over the rows that the source has; the pivot's own rows teach where it wins."""
    pivot, rows = corpus.rows["pivot"], corpus.rows[source]
    real = rows.is_real & np.isfinite(rows.label_logprob)
    mine, theirs = (corpus.per_dialogue(np.where(real, -r.label_logprob, 0.0)) for r in (pivot, rows))
    weight = np.full(corpus.num_dialogues, PUBLISHED_WEIGHT)
    lesson = _from_sources(corpus, ("pivot", source), (theirs < mine).astype(np.int64), weight)
    return replace(lesson, tail="renormalise")


def _from_sources(corpus: Corpus, names: tuple[str, ...], winner: np.ndarray, weight: np.ndarray) -> Lesson:
    """Each dialogue's rows from one model; `winner` int64 [dialogues] (-1: none), `weight` float64 [dialogues]."""
    width = max(corpus.rows[name].topk_ids.shape[1] for name in names)
    num_rows, of_row = len(corpus.labels), winner[corpus.dialogue]
    ids, logprobs = np.zeros((num_rows, width), np.int64), np.full((num_rows, width), -np.inf, np.float32)
    label = np.full(num_rows, -np.inf)
    for number, name in enumerate(names):
        rows, k = corpus.rows[name], corpus.rows[name].topk_ids.shape[1]
        mine = (of_row == number) & rows.is_real
        ids[mine, :k], logprobs[mine, :k] = rows.topk_ids[mine], rows.topk_logprobs[mine]
        label[mine] = rows.label_logprob[mine]
    return Lesson(ids, logprobs, np.where(of_row >= 0, weight[corpus.dialogue], 0.0), label, of_row)


def _always(corpus: Corpus, rows: ModelRows, weight: float) -> Lesson:
    nobody = np.full(len(corpus.labels), -1)
    return Lesson(rows.topk_ids, rows.topk_logprobs, np.where(rows.is_real, weight, 0.0), rows.label_logprob, nobody)


def _nothing(corpus: Corpus) -> Lesson:
    num = len(corpus.labels)
    logprobs = np.full((num, 1), -np.inf, np.float32)
    return Lesson(np.zeros((num, 1), np.int64), logprobs, np.zeros(num), np.full(num, -np.inf), np.full(num, -1))
