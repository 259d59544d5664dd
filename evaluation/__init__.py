"""Evaluation: what the measured models left in; held-out loss, exact answers, intervals and a page people look at out.

Artifacts go in (rows on the held-out dialogues, chosen logprobs, answers, lm-eval's figures), and nothing else: no network is loaded.
"""

ALL = "all"
"""Key of the figure over dialogues of all kinds."""
