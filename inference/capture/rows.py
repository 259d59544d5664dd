"""Top-k rows of one dialogue, and the packed form in which they leave the engine.

Goes in: token ids with target marks; packed int32 tensors. Comes out: `TopKRows`, and the target tokens as they travel
with a request. Knows nothing about vLLM, models or files.

Row convention: row t is the distribution OF token t GIVEN the tokens before t, so token 0 never has a row.
"""

from dataclasses import dataclass

import numpy as np

from fusechat.errors import ContractError


@dataclass(frozen=True)
class TopKRows:
    """The rows of one dialogue's target tokens, in their order; logprobs in nats over the whole vocabulary.

    `topk_ids` int32 [rows, k] and `topk_logprobs` float32 [rows, k], descending, equal values by ascending id;
    `label_logprob` float32 [rows] of the token that stands there; `logsumexp` float32 [rows] of the logits, NaN where
    the capture does not give it. Where ids were chosen: `chosen_logprobs` float32 [rows, m] of them, -inf where the id is
    padding, and `rest_logprob` float32 [rows] of all other ids together.
    """

    topk_ids: np.ndarray
    topk_logprobs: np.ndarray
    label_logprob: np.ndarray
    logsumexp: np.ndarray
    chosen_logprobs: np.ndarray | None = None
    rest_logprob: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.label_logprob)

    @property
    def k(self) -> int:
        k: int = self.topk_ids.shape[1]
        return k

    @classmethod
    def empty(cls, k: int, num_chosen: int | None = None) -> "TopKRows":
        """No rows."""
        return unpack_rows(np.zeros((0, packed_width(k, num_chosen)), dtype=np.int32), num_chosen)


def concatenate_rows(parts: list[TopKRows], k: int) -> TopKRows:
    """The rows of several dialogues, one after the other."""
    parts = parts or [TopKRows.empty(k)]
    names = ("topk_ids", "topk_logprobs", "label_logprob", "logsumexp")
    return TopKRows(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def packed_width(k: int, num_chosen: int | None) -> int:
    """Columns of packed rows; with chosen ids there is one for each, and one for the rest."""
    return 2 * k + 2 + (0 if num_chosen is None else num_chosen + 1)


def unpack_rows(packed: np.ndarray, num_chosen: int | None = None) -> TopKRows:
    """Packed rows, int32 [rows, 2k+2], columns ids | logprob bits | label logprob bits | log-sum-exp bits -> rows.

    Integers carry the bits of the floats, because float32 cannot carry ids above 2^24 exactly.

    Args:
        num_chosen: ids that were chosen per row; then [rows, 2k+2+1+m], behind them the rest's logprob | the chosen ids'.
    """
    width = packed.shape[1] - (0 if num_chosen is None else num_chosen + 1)
    k = width // 2 - 1
    floats = packed.view(np.float32)
    columns = [packed[:, :k], floats[:, k : 2 * k], floats[:, 2 * k], floats[:, 2 * k + 1]]
    if num_chosen is not None:
        columns += [floats[:, width + 1 :], floats[:, width]]
    return TopKRows(*(np.ascontiguousarray(column) for column in columns))


def encode_targets(token_ids: np.ndarray, is_scored: np.ndarray) -> bytes:
    """int32 ids and bool marks [tokens] -> what a request carries: its rows and the ids that stand there."""
    rows = np.flatnonzero(is_scored)
    return np.stack([rows, token_ids[rows]]).astype(np.int32).tobytes()


def decode_targets(targets: bytes) -> tuple[np.ndarray, np.ndarray]:
    """`encode_targets` -> int32 rows, ascending, and int32 labels, both [targets]."""
    rows, labels = np.frombuffer(targets, dtype=np.int32).reshape(2, -1)
    return rows, labels


def encode_chosen(chosen_ids: np.ndarray) -> bytes:
    """int [targets, m] ids, -1 pads -> what a request carries of them."""
    return chosen_ids.astype(np.int32).tobytes()


def decode_chosen(chosen: bytes, num_targets: int) -> np.ndarray:
    """`encode_chosen` -> int32 [targets, m]."""
    return np.frombuffer(chosen, dtype=np.int32).reshape(num_targets, -1)


def check_chosen(chosen_ids: np.ndarray, is_scored: np.ndarray, *, vocab_size: int, place: str) -> None:
    """Refuse chosen ids that do not fit a dialogue's rows or the vocabulary.

    Raises:
        ContractError: what was found and expected.
    """
    rows = int(is_scored.sum())
    if chosen_ids.ndim != 2 or chosen_ids.dtype.kind not in "iu" or len(chosen_ids) != rows:
        raise ContractError(
            f"{place}: chosen_ids are {chosen_ids.dtype} {chosen_ids.shape}, expected whole numbers [{rows}, m]: a line for "
            "each scored token, -1 pads a shorter one"
        )
    if chosen_ids.size and not -1 <= chosen_ids.min() <= chosen_ids.max() < vocab_size:
        raise ContractError(
            f"{place}: chosen_ids hold {chosen_ids.min()}..{chosen_ids.max()}, the model's vocabulary ends at "
            f"{vocab_size - 1}; choose ids of this model's own vocabulary, -1 pads"
        )


def check_dialogue(
    token_ids: np.ndarray, is_scored: np.ndarray, *, max_tokens: int, vocab_size: int, place: str
) -> None:
    """Refuse a dialogue that no engine can score.

    Raises:
        ContractError: what was found and expected.
    """
    if token_ids.shape != is_scored.shape or token_ids.ndim != 1:
        raise ContractError(
            f"{place}: token_ids {token_ids.shape} and is_scored {is_scored.shape} must be equally long lists"
        )
    if len(token_ids) > max_tokens:
        raise ContractError(
            f"{place}: has {len(token_ids)} tokens, the engine was opened for {max_tokens}; "
            "cut the dialogues shorter or raise dialogues.max_tokens"
        )
    if len(token_ids) and not 0 <= token_ids.min() <= token_ids.max() < vocab_size:
        raise ContractError(
            f"{place}: holds token ids {token_ids.min()}..{token_ids.max()}, the model's vocabulary ends at {vocab_size - 1}; "
            "tokenize with this model's own tokenizer"
        )
    if len(is_scored) and is_scored[0]:
        raise ContractError(
            f"{place}: token 0 is marked as a target, but nothing stands before it that could predict it"
        )
