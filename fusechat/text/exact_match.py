"""Whether two answers are the same: texts in, what of them is compared out."""

import re
from typing import Literal

Compare = Literal["text", "number", "pattern"]
"""What of an answer is compared: all of it, the last number in it, or what a regular expression finds."""
NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def is_exact(answer: str, reference: str) -> bool:
    """Equality of two answers, but for case, white space at the ends, and one full stop at the end."""
    return normalised(answer) == normalised(reference)


def normalised(answer: str) -> str:
    """`' Blue.'` -> `'blue'`."""
    return answer.strip().removesuffix(".").rstrip().casefold()


def compared_part(answer: str, compare: Compare, pattern: str = "") -> str | None:
    """What of an answer is compared with another's; None: it has no such part.

    Args:
        pattern: regular expression of `pattern`; its first group counts, or all that it matches where it has none. The last
            place in the answer counts.
    """
    if compare == "text":
        return normalised(answer) or None
    if compare == "number":
        numbers = NUMBER.findall(answer)
        return _plain_number(numbers[-1]) if numbers else None
    matches = list(re.finditer(pattern, answer))
    if not matches:
        return None
    last = matches[-1]
    return normalised(last[1] if last.re.groups else last[0]) or None


def _plain_number(text: str) -> str:
    """`'+1,200.50'` -> `'1200.5'`: two ways to write a number are one."""
    digits = text.replace(",", "").lstrip("+")
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    sign, whole = ("-", digits[1:]) if digits.startswith("-") else ("", digits)
    stripped = whole.lstrip("0")
    whole = f"0{stripped}" if not stripped or stripped.startswith(".") else stripped
    return "0" if whole == "0" else sign + whole
