"""Every array that crosses a boundary between two stages, declared once.

Writers and readers validate against these declarations, and docs/contracts.md is generated from them
(`python -m fusechat.storage.docs`). This module knows nothing about files or about how values are encoded on disk
(that is `fusechat.storage.row_store`).

Row convention, for every array with the axis `rows`: row t is the distribution OF token t GIVEN the tokens before t.
Only target tokens have rows; they stand in the order of the tokens, dialogue after dialogue.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from ..errors import ContractError

CONTRACT_VERSION = 3

UINT16_VOCABULARY = 65_536
"""Largest vocabulary whose ids are stored as uint16; larger ones take uint32."""
MIN_TAIL_MASS = 1e-6
"""Floor of the mass that a stored row leaves to the tokens it does not list: rows are rounded, so less is not known."""


class RowKind(IntEnum):
    """How an aligned row was obtained; the values of the `kind` array."""

    EMPTY = 0  # no distribution: the source could not be laid on this position
    EXACT = 1  # both tokenizers have a boundary here and cut the same bytes
    MAPPED = 2  # both have a boundary here; the next tokens differ
    INSIDE = (
        3  # the pivot has a boundary inside a source token: the source's row is conditioned on the bytes already read
    )
    END_OF_TURN = 4  # end-of-turn meets end-of-turn
    IDENTITY = 5  # same tokenizer, rows pass through
    ONE_HOT = 6  # released mode only: all mass on the label, borrowed from the data, not from the source

    @property
    def is_real(self) -> bool:
        """True if the row says something the source said."""
        return self not in (RowKind.EMPTY, RowKind.ONE_HOT)


_REAL_KINDS = np.array([kind for kind in RowKind if kind.is_real], dtype=np.uint8)


def says_something(kind: np.ndarray) -> np.ndarray:
    """bool, the shape of `kind` (values of RowKind): whether a row says something the source said."""
    return np.isin(kind, _REAL_KINDS)


class TokenField(IntEnum):
    """What a token is of; the values of the `field` array."""

    TEMPLATE = 0  # what the template writes around the messages
    REASONING = 1  # an assistant's reasoning
    CONTENT = 2  # a message's content
    TOOL_CALLS = 3  # an assistant's tool calls, in the template's own form
    MARK = 4  # what the template writes between the fields of one turn and the model therefore writes too
    END_OF_TURN = 5  # what ends an assistant's turn


@dataclass(frozen=True)
class ArraySpec:
    """One array of a contract."""

    name: str
    dtypes: tuple[str, ...]
    axes: tuple[str | int, ...]
    """Axis names; equal names have equal lengths within an artifact. An int is a fixed length."""
    unit: str
    fill_value: int | float | bool
    writer: str
    reader: str
    meaning: str


@dataclass(frozen=True)
class Contract:
    """The arrays of one kind of artifact."""

    artifact: str
    arrays: tuple[ArraySpec, ...]

    def spec(self, name: str) -> ArraySpec:
        """The declaration of one array; a name that is not declared is our own bug."""
        return next(spec for spec in self.arrays if spec.name == name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.arrays)

    def validate(self, arrays: dict[str, np.ndarray], *, axes: dict[str, int] | None = None, place: str = "") -> None:
        """Check names, dtypes and axis lengths of the given arrays.

        Args:
            arrays: name -> array; exactly the contract's names.
            axes: axis lengths that are already known, in elements; the others are taken from the first array that has them.
            place: where the arrays come from, for the message.
        Raises:
            ContractError: naming the array, what was found and what was expected.
        """
        lengths: dict[str, int] = dict(axes or {})
        if set(arrays) != set(self.names):
            raise ContractError(
                f"{place or self.artifact}: found arrays {sorted(arrays)}, expected {sorted(self.names)}; "
                "write exactly the arrays of the contract"
            )
        for spec in self.arrays:
            _validate_array(spec, arrays[spec.name], lengths, place or self.artifact)


def _validate_array(spec: ArraySpec, array: np.ndarray, lengths: dict[str, int], place: str) -> None:
    if array.dtype.name not in spec.dtypes:
        raise ContractError(f"{place}: {spec.name} is {array.dtype.name}, expected {' or '.join(spec.dtypes)}")
    if array.ndim != len(spec.axes):
        raise ContractError(f"{place}: {spec.name} has shape {array.shape}, expected axes {spec.axes}")
    for axis, length in zip(spec.axes, array.shape, strict=True):
        expected = axis if isinstance(axis, int) else lengths.setdefault(axis, length)
        if length != expected:
            raise ContractError(f"{place}: {spec.name} has {length} along {axis}, expected {expected}")


def id_dtype(vocab_size: int) -> str:
    """The dtype in which token ids of a vocabulary are stored."""
    return "uint16" if vocab_size <= UINT16_VOCABULARY else "uint32"


TOKENS = Contract(
    "tokens",
    (
        ArraySpec("token_ids", ("int32",), ("tokens",), "id", 0, "tokenize", "all", "the dialogue under a model's template"),
        ArraySpec(
            "is_scored", ("bool",), ("tokens",), "", False, "tokenize", "all",
            "what an assistant writes and learns: reasoning, content, tool calls, marks between them, end of turn",
        ),
        ArraySpec(
            "span", ("int32",), ("tokens", 2), "bytes", -1, "tokenize", "align, train",
            "start and end in the dialogue's fields, one after the other; of a tool call: in the dialogue's tool calls as "
            "this template spells them; -1 for marks and for the template's own",
        ),
        ArraySpec("field", ("uint8",), ("tokens",), "TokenField", 0, "tokenize", "align, train", "what the token is of"),
        ArraySpec(
            "call_digest", ("uint32",), ("dialogues",), "", 0, "tokenize", "align",
            "of the bytes of the dialogue's tool calls as this template spells them; 0: it has none",
        ),
        ArraySpec("offsets", ("int64",), ("dialogues+1",), "tokens", 0, "tokenize", "all", "first token of each dialogue"),
        ArraySpec("row_offsets", ("int64",), ("dialogues+1",), "rows", 0, "tokenize", "all", "first row of each dialogue"),
    ),
)  # fmt: skip

_TOPK = (
    ArraySpec("topk_ids", ("uint16", "uint32"), ("rows", "k"), "id", 0, "{w}", "{r}", "most probable tokens, best first"),
    ArraySpec(
        "topk_logprobs", ("float32",), ("rows", "k"), "nats", float("-inf"), "{w}", "{r}",
        "descending, normalised over the whole vocabulary; -inf pads a short row and its id is ignored; "
        "tail mass = 1 - sum(exp)",
    ),
    ArraySpec("label_logprob", ("float32",), ("rows",), "nats", float("nan"), "{w}", "{r}", "of the token that stands there"),
)  # fmt: skip


def _topk_arrays(writer: str, reader: str) -> tuple[ArraySpec, ...]:
    return tuple(ArraySpec(s.name, s.dtypes, s.axes, s.unit, s.fill_value, writer, reader, s.meaning) for s in _TOPK)


LOGPROBS = Contract("logprobs", _topk_arrays("extract, answer", "align, train, evaluate"))

ALIGNED = Contract(
    "aligned",
    (
        *_topk_arrays("align, answer", "train, evaluate"),
        ArraySpec(
            "kind", ("uint8",), ("rows",), "RowKind", 0, "align, answer", "train, evaluate", "how the row was obtained"
        ),
    ),
)

CHOICE = Contract(
    "choice",
    (
        ArraySpec("source", ("int16",), ("dialogues",), "source", -1, "train", "train", "who teaches the dialogue; -1: nobody"),
        ArraySpec(
            "trust", ("float32",), ("dialogues",), "", 0.0, "train", "train",
            "of that source on dialogues of this kind, in [0, 1]; 0 where nobody teaches",
        ),
        ArraySpec(
            "source_losses", ("float64",), ("sources", "dialogues"), "nats", 0.0, "train", "train",
            "of the labels over all rows; a row that a source lacks costs what the label's frequency says",
        ),
        ArraySpec("pivot_loss", ("float64",), ("dialogues",), "nats", 0.0, "train", "train", "over the same rows"),
        ArraySpec(
            "frequency_loss", ("float64",), ("dialogues",), "nats", 0.0, "train", "train",
            "of a model that knows how often each label occurs and nothing else",
        ),
        ArraySpec(
            "is_own", ("bool",), ("dialogues",), "", False, "train", "train",
            "in a round: the student itself wrote the answer; its rows teach, its labels do not",
        ),
    ),
)  # fmt: skip

CHOSEN = Contract(
    "chosen",
    (
        ArraySpec("dialogues", ("int64",), ("sampled",), "dialogue", 0, "answer", "evaluate", "numbers of the dialogues in their split"),
        ArraySpec("offsets", ("int64",), ("sampled+1",), "rows", 0, "answer", "evaluate", "first row of each of them"),
        ArraySpec(
            "chosen_logprobs", ("float32",), ("rows", "k"), "nats", float("-inf"), "answer", "evaluate",
            "of a measured model, of the ids of a teacher's row; -inf where that row is padded",
        ),
        ArraySpec("rest_logprob", ("float32",), ("rows",), "nats", float("nan"), "answer", "evaluate", "of all other ids together"),
    ),
)  # fmt: skip

CONTRACTS = {contract.artifact: contract for contract in (TOKENS, LOGPROBS, ALIGNED, CHOICE, CHOSEN)}
