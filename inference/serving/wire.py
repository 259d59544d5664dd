"""How dialogues and rows cross HTTP: two forms of a scoring request and of its reply.

The binary form is a safetensors document: eight bytes with the length of a JSON header, the header (names, dtypes, shapes
and text), the raw arrays. The JSON form is for a look. Knows nothing about engines, HTTP or text. docs/service.md shows both.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fusechat.errors import ContractError

from ..capture.rows import TopKRows

BINARY = "application/x-safetensors"
JSON = "application/json"
ROW_ARRAYS = ("topk_ids", "topk_logprobs", "label_logprob", "logsumexp")
CHOSEN_ARRAYS = ("chosen_logprobs", "rest_logprob")
"""Where the request chose ids."""
RECIPE_HEADER = "X-FuseChat-Recipe"
"""Names the recipe that the engine must have, in whatever form the request is."""
MAX_HEADER = 2**16
"""Bytes of a binary request's header."""
REQUEST_ARRAYS = {"token_ids": np.int32, "is_scored": np.bool_, "offsets": np.int64}
REPLY_ARRAYS = {
    "topk_ids": np.int32, "topk_logprobs": np.float32, "label_logprob": np.float32, "logsumexp": np.float32,
    "row_offsets": np.int64,
}  # fmt: skip


@dataclass(frozen=True)
class ScoreRequest:
    """What a client asks of an engine that scores.

    `token_ids` int32 [tokens] and `is_scored` bool [tokens] per dialogue; or `messages`, rows as dialogue files hold them.
    """

    model: str
    token_ids: tuple[np.ndarray, ...] = ()
    is_scored: tuple[np.ndarray, ...] = ()
    messages: tuple[dict[str, Any], ...] = ()
    chosen_ids: tuple[np.ndarray, ...] | None = None
    """int32 [rows, m] per dialogue: tokens whose logprob is asked for beside the k."""
    k: int | None = None
    """Entries kept per row; None: what the engine was started for."""
    recipe: str | None = None
    """Fingerprint that the engine must have; None: whatever it has."""
    alone: bool = False
    """On CPUs: the engine reads nothing else meanwhile, so that the rows are the same to the bit in every company."""


@dataclass(frozen=True)
class ScoreReply:
    """Rows per dialogue, and the tokens that they are of."""

    model: str
    recipe: str
    token_ids: tuple[np.ndarray, ...]
    is_scored: tuple[np.ndarray, ...]
    rows: tuple[TopKRows, ...]


def write_request(request: ScoreRequest) -> tuple[bytes, str]:
    """A request's body and content type: token ids in the binary form, messages in JSON."""
    if request.messages:
        fields = {"model": request.model, "dialogues": list(request.messages), "k": request.k, "recipe": request.recipe}
        if request.chosen_ids is not None:
            fields["chosen_ids"] = [np.asarray(ids).tolist() for ids in request.chosen_ids]
        return json.dumps({name: value for name, value in fields.items() if value is not None}).encode(), JSON
    arrays = {
        "token_ids": _joined(request.token_ids, np.int32),
        "is_scored": _joined(request.is_scored, np.bool_),
        "offsets": _offsets(request.token_ids),
    }
    if request.chosen_ids is not None:
        arrays["chosen_ids"] = np.concatenate([np.asarray(ids, np.int32) for ids in request.chosen_ids])
    text = {"model": request.model, "alone": "1" if request.alone else ""}
    text |= {"k": str(request.k)} if request.k else {}
    text |= {"recipe": request.recipe} if request.recipe else {}
    return save(arrays, metadata=text), BINARY


def model_of(body: bytes, content_type: str) -> str:
    """The model that a request of either form, or one in OpenAI's, asks for; reads no more of a binary body than its header.

    Raises:
        ContractError: the body names none.
    """
    try:
        if content_type.startswith(BINARY):
            length = int.from_bytes(body[:8], "little")
            values = json.loads(body[8 : 8 + min(length, MAX_HEADER)])["__metadata__"]
        else:
            values = json.loads(body)
        model = values["model"]
    except (ValueError, RecursionError, KeyError, TypeError):
        model = None
    if not isinstance(model, str) or not model:
        raise ContractError("found no `model` in the request, expected a name that GET /v1/models lists")
    return model


def read_request(body: bytes, content_type: str) -> ScoreRequest:
    """A request from its body.

    Raises:
        ContractError: what was found and expected.
    """
    return _read_binary(body) if content_type.startswith(BINARY) else _read_json(body)


def write_reply(reply: ScoreReply, *, in_json: bool) -> tuple[bytes, str]:
    """A reply's body and content type."""
    if in_json:
        return json.dumps(_reply_values(reply)).encode(), JSON
    arrays = {
        "token_ids": _joined(reply.token_ids, np.int32),
        "is_scored": _joined(reply.is_scored, np.bool_),
        "offsets": _offsets(reply.token_ids),
        "row_offsets": _offsets(reply.rows),
    }
    chosen = CHOSEN_ARRAYS if reply.rows[0].chosen_logprobs is not None else ()
    for name in (*ROW_ARRAYS, *chosen):
        arrays[name] = np.concatenate([getattr(rows, name) for rows in reply.rows])
    return save(arrays, metadata={"model": reply.model, "recipe": reply.recipe}), BINARY


def read_reply(body: bytes) -> ScoreReply:
    """A reply from its binary form.

    Raises:
        ContractError: the body is no such document.
    """
    arrays, text = _parsed(body)
    _check(arrays, REQUEST_ARRAYS | REPLY_ARRAYS)
    dialogues, rows = _blocks(arrays["offsets"]), _blocks(arrays["row_offsets"])
    names = ROW_ARRAYS + (CHOSEN_ARRAYS if CHOSEN_ARRAYS[0] in arrays else ())
    return ScoreReply(
        text.get("model", ""),
        text.get("recipe", ""),
        tuple(arrays["token_ids"][place] for place in dialogues),
        tuple(arrays["is_scored"][place] for place in dialogues),
        tuple(TopKRows(*(arrays[name][place] for name in names)) for place in rows),
    )


def _read_binary(body: bytes) -> ScoreRequest:
    arrays, text = _parsed(body)
    _check(arrays, REQUEST_ARRAYS)
    if len(arrays["token_ids"]) != len(arrays["is_scored"]):
        raise ContractError("token_ids and is_scored must be equally long")
    places = _blocks(arrays["offsets"], len(arrays["token_ids"]))
    marks = tuple(arrays["is_scored"][place] for place in places)
    chosen = None
    if "chosen_ids" in arrays:
        chosen = _chosen(arrays["chosen_ids"], marks)
    return ScoreRequest(
        model=text.get("model", ""),
        token_ids=tuple(arrays["token_ids"][place] for place in places),
        is_scored=marks,
        chosen_ids=chosen,
        k=_whole(text["k"]) if "k" in text else None,
        recipe=text.get("recipe"),
        alone=bool(text.get("alone")),
    )


def _read_json(body: bytes) -> ScoreRequest:
    """`{"model", "dialogues": [{"messages": [..]} | {"token_ids": [..], "targets": [..]}], "k", "recipe"}`."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ContractError(f"found a body that is no JSON ({type(error).__name__}), expected an object") from None
    if not isinstance(values, dict) or not isinstance(values.get("model"), str):
        raise ContractError("expected an object with `model`, a name that GET /v1/models lists, and `dialogues`")
    known = {"model", "dialogues", "k", "recipe", "chosen_ids"}
    if unknown := sorted(set(values) - known):
        raise ContractError(f"found {', '.join(unknown)}, expected {', '.join(sorted(known))}")
    dialogues = values.get("dialogues")
    if not isinstance(dialogues, list) or not dialogues or not all(isinstance(one, dict) for one in dialogues):
        raise ContractError("dialogues: expected a list of objects with `messages`, or with `token_ids` and `targets`")
    k, recipe = values.get("k"), values.get("recipe")
    common = {"model": values["model"], "k": None if k is None else _whole(k), "recipe": recipe}
    if all("token_ids" in one for one in dialogues):
        if "chosen_ids" in values:
            raise ContractError("chosen_ids: beside token_ids they stand in each dialogue")
        read = [_dialogue(number, one) for number, one in enumerate(dialogues)]
        ids, marks, chosen = zip(*read, strict=True)
        wanted = None if all(one is None for one in chosen) else chosen
        if wanted is not None and any(one is None for one in wanted):
            raise ContractError("chosen_ids: give them for each dialogue or for none")
        return ScoreRequest(token_ids=ids, is_scored=marks, chosen_ids=wanted, **common)
    if any("token_ids" in one for one in dialogues):
        raise ContractError("dialogues: give messages for all or token_ids for all")
    chosen_lists = values.get("chosen_ids")
    if chosen_lists is not None and not isinstance(chosen_lists, list):
        raise ContractError("chosen_ids: expected a list for each training example")
    chosen_of = None if chosen_lists is None else tuple(_integers(one, "chosen_ids", 2) for one in chosen_lists)
    return ScoreRequest(messages=tuple(dialogues), chosen_ids=chosen_of, **common)


def _dialogue(number: int, values: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """int32 ids, bool marks and chosen ids (or None) of one dialogue in the JSON form."""
    place = f"dialogue {number}"
    if unknown := sorted(set(values) - {"token_ids", "targets", "chosen_ids"}):
        raise ContractError(f"{place}: found {', '.join(unknown)}, expected token_ids, targets and chosen_ids")
    ids, targets = _integers(values["token_ids"], place), _integers(values.get("targets", []), f"{place}, targets")
    marks = np.zeros(len(ids), np.bool_)
    if len(targets) and not 0 < targets.min() <= targets.max() < len(ids):
        raise ContractError(
            f"{place}: targets are positions from 1 to {len(ids) - 1}, found {targets.min()}..{targets.max()}"
        )
    marks[targets] = True
    if marks.sum() != len(targets) or (np.diff(targets) <= 0).any():
        raise ContractError(f"{place}: targets must ascend, each once")
    if "chosen_ids" not in values:
        return ids, marks, None
    return ids, marks, _chosen(_integers(values["chosen_ids"], f"{place}, chosen_ids", 2), (marks,))[0]


def _chosen(values: np.ndarray, marks: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    rows = [int(of_one.sum()) for of_one in marks]
    if values.ndim != 2 or len(values) != sum(rows):
        raise ContractError(f"chosen_ids: found shape {values.shape}, expected [{sum(rows)}, ids per row]")
    return tuple(values[place].astype(np.int32) for place in _blocks(np.cumsum([0, *rows])))


def _reply_values(reply: ScoreReply) -> dict[str, Any]:
    """The reply for a look."""
    dialogues = []
    for ids, marks, rows in zip(reply.token_ids, reply.is_scored, reply.rows, strict=True):
        positions = np.flatnonzero(marks).tolist()
        dialogues.append(
            {
                "token_ids": ids.tolist(),
                "rows": [
                    {
                        "position": position,
                        "token_id": int(ids[position]),
                        "label_logprob": float(rows.label_logprob[row]),
                        "topk_ids": rows.topk_ids[row].tolist(),
                        "topk_logprobs": rows.topk_logprobs[row].tolist(),
                        **_chosen_values(rows, row),
                    }
                    for row, position in enumerate(positions)
                ],
            }
        )
    return {"model": reply.model, "recipe": reply.recipe, "dialogues": dialogues}


def _chosen_values(rows: TopKRows, row: int) -> dict[str, Any]:
    """Of one row, where ids were chosen; JSON has no infinity, so the logprob of padding is null."""
    if rows.chosen_logprobs is None or rows.rest_logprob is None:
        return {}
    chosen = [value if math.isfinite(value) else None for value in rows.chosen_logprobs[row].tolist()]
    return {"chosen_logprobs": chosen, "rest_logprob": float(rows.rest_logprob[row])}


def _parsed(body: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and text of a safetensors document."""
    try:
        arrays = load(body)
        length = int.from_bytes(body[:8], "little")
        text = json.loads(body[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ContractError(f"found a body that is no safetensors document ({error}), see docs/service.md") from None
    return arrays, text


def _check(arrays: dict[str, np.ndarray], expected: dict[str, Any]) -> None:
    for name, dtype in expected.items():
        if name not in arrays or arrays[name].dtype != dtype:
            given = arrays[name].dtype if name in arrays else "nothing"
            raise ContractError(f"{name}: found {given}, expected an array of {np.dtype(dtype)}")
        if name not in ("topk_ids", "topk_logprobs") and arrays[name].ndim != 1:
            raise ContractError(f"{name}: found shape {arrays[name].shape}, expected a list")


def _blocks(offsets: np.ndarray, total: int | None = None) -> list[slice]:
    """The places between offsets that begin at 0 and never descend."""
    ends = total is not None and len(offsets) and offsets[-1] != total
    if not len(offsets) or offsets[0] != 0 or (np.diff(offsets) < 0).any() or ends:
        raise ContractError("offsets: expected 0, then the end of each dialogue among the tokens, never descending")
    return [slice(start, stop) for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]


def _integers(values: Any, place: str, dimensions: int = 1) -> np.ndarray:
    """int32 array of a JSON list, or of a list of equally long lists."""
    try:
        array = np.asarray(values)
    except ValueError:  # lists of different lengths
        array = np.zeros(1)
    if not array.size:
        return np.zeros((len(array), 0)[:dimensions] if array.ndim else (0,), np.int32)
    fits = array.dtype.kind == "i" and array.ndim == dimensions and array.min() >= -(2**31) and array.max() < 2**31
    if not fits:
        kind = "list" if dimensions == 1 else "list of equally long lists"
        raise ContractError(f"{place}: expected a {kind} of whole numbers below 2^31")
    return array.astype(np.int32)


def _whole(value: Any) -> int:
    try:
        number = int(value)
    except (ValueError, TypeError):
        number = 0
    if number < 1:
        raise ContractError(f"k: found {str(value)[:40]!r}, expected a whole number of at least 1")
    return number


def _joined(parts: tuple[np.ndarray, ...], dtype: Any) -> np.ndarray:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(0, dtype)


def _offsets(parts: tuple[Any, ...]) -> np.ndarray:
    return np.cumsum([0, *map(len, parts)], dtype=np.int64)
