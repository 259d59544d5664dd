"""Figures and what their intervals support, in words: values in, text out. The same on the page, in cards, tables and terminal."""

from collections.abc import Mapping
from typing import Any

SUPPORTS = {
    "lower": "lower",
    "higher": "higher",
    "undecided": "no difference shown",
    "too few": "too few dialogues to say",
}
"""What a difference of two models over dialogues supports (`figures.supported`) -> how it is said."""


def number(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else f"{value:{'+' if signed else ''}.{digits}f}"


def interval(entry: Mapping[str, Any], digits: int = 3, signed: bool = False) -> str:
    """`[low, high]` of an entry, or nothing where it has none."""
    if entry["low"] is None or entry["high"] is None:
        return ""
    return f"[{number(entry['low'], digits, signed)}, {number(entry['high'], digits, signed)}]"


def with_interval(value: float | None, entry: Mapping[str, Any], digits: int = 3, signed: bool = False) -> str:
    """`value [low, high]`."""
    return f"{number(value, digits, signed)} {interval(entry, digits, signed)}".rstrip()
