"""Evaluation: the models of a run in; held-out loss, exact answers, intervals and a page people look at out."""

ALL = "all"
"""Key of the figure over dialogues of all kinds."""
