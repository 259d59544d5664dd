"""The contracts and the page generated from them."""

from pathlib import Path

import numpy as np
import pytest

from fusechat.errors import ContractError
from fusechat.storage.contracts import ALIGNED, CONTRACTS, LOGPROBS, TOKENS, RowKind, id_dtype
from fusechat.storage.docs import to_markdown

ROOT = Path(__file__).parents[2]


def test_docs_contracts_page_is_the_generated_one() -> None:
    assert (ROOT / "docs" / "contracts.md").read_text(encoding="utf-8") == to_markdown()


def test_validate_good_arrays_pass_and_bad_ones_are_named() -> None:
    good = {
        "token_ids": np.zeros(3, np.int32), "is_scored": np.zeros(3, bool),
        "span": np.zeros((3, 2), np.int32), "offsets": np.array([0, 3]), "row_offsets": np.array([0, 0]),
        "field": np.zeros(3, np.uint8), "call_digest": np.zeros(1, np.uint32),
    }  # fmt: skip
    TOKENS.validate(good)
    for change, says in (
        ({"token_ids": np.zeros(3, np.int64)}, "token_ids is int64, expected int32"),
        ({"is_scored": np.zeros(4, bool)}, "is_scored has 4 along tokens, expected 3"),
        ({"span": np.zeros((3, 3), np.int32)}, "span has 3 along 2, expected 2"),
        ({"span": np.zeros(3, np.int32)}, "span has shape"),
        ({"extra": np.zeros(3)}, "expected"),
    ):
        with pytest.raises(ContractError, match=says):
            TOKENS.validate({**good, **change})


def test_contracts_share_the_row_arrays_and_ids_fit() -> None:
    assert set(ALIGNED.names) == {*LOGPROBS.names, "kind"}
    assert set(CONTRACTS) == {"tokens", "logprobs", "aligned", "choice", "chosen"}
    assert id_dtype(65_536) == "uint16" and id_dtype(65_537) == "uint32"
    assert not RowKind.ONE_HOT.is_real and not RowKind.EMPTY.is_real and RowKind.EXACT.is_real
