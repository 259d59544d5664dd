"""How dialogues and rows cross HTTP: two forms of a scoring request and of its reply.

The binary form is a safetensors document: eight bytes with the length of a JSON header, the header (names, dtypes, shapes
and text), the raw arrays. The JSON form is for a look, and stands in `wire_json`. Knows nothing about engines, HTTP or text.
docs/service.md shows both.
"""

import json
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fusechat.errors import ContractError

from ..capture.rows import TopKRows
from .scoring_records import ScoreReply, ScoreRequest, places_between, split_chosen_ids, whole_number
from .wire_json import read_json_request, reply_values

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
    return _read_binary(body) if content_type.startswith(BINARY) else read_json_request(body)


def write_reply(reply: ScoreReply, *, in_json: bool) -> tuple[bytes, str]:
    """A reply's body and content type."""
    if in_json:
        return json.dumps(reply_values(reply)).encode(), JSON
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
    dialogues, rows = places_between(arrays["offsets"]), places_between(arrays["row_offsets"])
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
    places = places_between(arrays["offsets"], len(arrays["token_ids"]))
    marks = tuple(arrays["is_scored"][place] for place in places)
    chosen = None
    if "chosen_ids" in arrays:
        chosen = split_chosen_ids(arrays["chosen_ids"], marks)
    return ScoreRequest(
        model=text.get("model", ""),
        token_ids=tuple(arrays["token_ids"][place] for place in places),
        is_scored=marks,
        chosen_ids=chosen,
        k=whole_number(text["k"]) if "k" in text else None,
        recipe=text.get("recipe"),
        alone=bool(text.get("alone")),
    )


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


def _joined(parts: tuple[np.ndarray, ...], dtype: Any) -> np.ndarray:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(0, dtype)


def _offsets(parts: tuple[Any, ...]) -> np.ndarray:
    return np.cumsum([0, *map(len, parts)], dtype=np.int64)
