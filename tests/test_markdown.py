"""Tables of cards and pages: what stands in a cell does not end it."""

from fusechat.markdown import markdown_table


def test_cells_hold_what_they_are_given() -> None:
    rows = [("a|b", 1), ("of two\nlines", "`c | d`")]
    assert markdown_table(["name", "of"], rows) == [
        "| name | of |",
        "|---|---|",
        r"| a\|b | 1 |",
        r"| of two lines | `c \| d` |",
    ]
