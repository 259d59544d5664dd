"""Which source teaches a dialogue, and how far it is trusted: the arithmetic alone, in numpy.

In: label losses and top-k rows on the pivot's tokens. Out: a source per dialogue, a trust per source and kind. Knows
nothing about files, training or the loss.

A source teaches a dialogue only where it explains the labels better than every other source, than the pivot, and than
the labels' own frequency. The last is what a model knows that knows nothing: without it, of two models that do not know
a dialogue the less certain one wins and teaches noise. How far a source is trusted is read off its calibration: over
many dialogues the loss C of a calibrated row equals its entropy H, and a source that is surer than it is right has
H / C below 1.
"""

import numpy as np

from fusechat.storage.contracts import MIN_TAIL_MASS

NOBODY = -1
"""No source teaches the dialogue: the pivot, or the labels' own frequency, explains it as well as any."""


def loss_of_counts(labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """float64 [rows], nats: minus the log frequency of each label; `counts` int [ids], how often each id is a label among all."""
    loss: np.ndarray = np.log(counts.sum()) - np.log(counts[labels])
    return loss


def source_loss(label_logprob: np.ndarray, is_real: np.ndarray, by_frequency: np.ndarray) -> np.ndarray:
    """The loss of each row of a source, comparable with the pivot's over the same bytes.

    A row that the source lacks says nothing, so it is charged what a model pays that knows nothing. A source without any
    row thereby ties with the labels' frequency, and does not win.

    Args:
        label_logprob: float [rows], nats; ignored where there is no row.
        is_real: bool [rows], whether the row says what the source said.
        by_frequency: float [rows], nats: the loss of each label by its frequency.
    Returns:
        float64 [rows], nats.
    """
    return np.where(is_real & np.isfinite(label_logprob), -label_logprob.astype(np.float64), by_frequency)


def choose(pivot_loss: np.ndarray, source_losses: np.ndarray, frequency_loss: np.ndarray) -> np.ndarray:
    """The source that teaches each dialogue; a tie with pivot or frequency goes to nobody, one of sources to the first.

    Args:
        pivot_loss: float [dialogues], nats over all rows of the dialogue.
        source_losses: float [sources, dialogues], over the same rows.
        frequency_loss: float [dialogues].
    Returns:
        int64 [dialogues]; -1: nobody.
    """
    best = np.argmin(source_losses, axis=0)
    least = np.take_along_axis(source_losses, best[None], axis=0)[0]
    return np.where(least < np.minimum(pivot_loss, frequency_loss), best, NOBODY)


def row_entropy(topk_logprobs: np.ndarray) -> np.ndarray:
    """float64 [rows], nats: entropy over the row's k listed tokens and one outcome for all others; 0 without a row."""
    logprobs = _outcomes(topk_logprobs)
    probabilities = np.exp(logprobs)
    shares = np.where(probabilities > 0, probabilities * np.where(probabilities > 0, logprobs, 0.0), 0.0)
    entropy: np.ndarray = -shares.sum(axis=1)
    return entropy


def row_label_loss(topk_ids: np.ndarray, topk_logprobs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The loss of each label over the same outcomes as `row_entropy`: a label that is not listed is one of the others.

    Args:
        topk_ids: int [rows, k]; an id whose logprob is -inf is ignored.
        topk_logprobs: float [rows, k], nats.
        labels: int [rows].
    Returns:
        float64 [rows], nats; 0 without a row.
    """
    logprobs = _outcomes(topk_logprobs)
    is_label = (topk_ids.astype(np.int64) == labels[:, None]) & np.isfinite(topk_logprobs)
    listed = np.where(is_label, logprobs[:, :-1], -np.inf).max(axis=1)
    loss = -np.where(is_label.any(axis=1), listed, logprobs[:, -1])
    return np.where(np.isfinite(topk_logprobs).any(axis=1), loss, 0.0)


def calibration(entropy: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """float64 [dialogues]: entropy over loss; a loss of nothing is a source that is sure and right throughout.

    Args:
        entropy: float [dialogues], nats, `row_entropy` summed over the source's rows of a dialogue.
        loss: float [dialogues], nats, `row_label_loss` summed over the same rows.
    """
    ratio: np.ndarray = np.where(loss > 0, entropy / np.where(loss > 0, loss, 1.0), 1.0)
    return ratio


def trust_of(calibrations: np.ndarray) -> float:
    """How far a source is trusted on one kind of dialogue: min(1, median) over those of the kind that it teaches.

    Args:
        calibrations: float [dialogues], as `calibration` gives them.
    """
    return float(min(1.0, np.median(calibrations)))


def _outcomes(topk_logprobs: np.ndarray) -> np.ndarray:
    """float64 [rows, k + 1], nats: the row with the rest of its mass last, normalised as the loss does it."""
    mass = np.exp(topk_logprobs, dtype=np.float64)
    mass = np.concatenate([mass, np.maximum(1 - mass.sum(axis=1, keepdims=True), MIN_TAIL_MASS)], axis=1)
    with np.errstate(divide="ignore"):
        logprobs = np.log(mass / mass.sum(axis=1, keepdims=True))
    has_row = np.isfinite(topk_logprobs).any(axis=1, keepdims=True)
    return np.where(has_row, logprobs, -np.inf)
