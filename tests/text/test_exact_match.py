"""Exact answers: what is forgiven."""

import pytest

from fusechat.text.exact_match import is_exact


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        (" Dovrari ruvi SEN.", "dovrari ruvi sen", True),
        ("dovrari ruvi sen", "Dovrari ruvi sen.", True),
        ("dovrari ruvi", "dovrari ruvi sen", False),
        ("dovrari ruvi sen!", "dovrari ruvi sen", False),
        ("", "sen", False),
        ("3.14", "3.14", True),
    ],
)
def test_is_exact_forgives_case_ends_and_one_full_stop(answer: str, reference: str, expected: bool) -> None:
    assert is_exact(answer, reference) is expected
