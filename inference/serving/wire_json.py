"""The JSON form of a scoring request and of its reply, for a look: bytes in, records out; and the other way round, plain values.

docs/service.md shows both.
"""

import json
import math
from typing import Any

import numpy as np

from fusechat.errors import ContractError

from ..capture.rows import TopKRows
from .scoring_records import ScoreReply, ScoreRequest, split_chosen_ids, whole_number


def read_json_request(body: bytes) -> ScoreRequest:
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
    common = {"model": values["model"], "k": None if k is None else whole_number(k), "recipe": recipe}
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
    return ids, marks, split_chosen_ids(_integers(values["chosen_ids"], f"{place}, chosen_ids", 2), (marks,))[0]


def reply_values(reply: ScoreReply) -> dict[str, Any]:
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
