"""Measured models score the held-out dialogues, and the ids of the teachers' rows.

Goes in: tokens of the held-out dialogues, the models that are measured, the teachers' rows. Comes out: for each model a store of
rows on the held-out dialogues, as extraction makes them, and its logprobs of the ids of each teacher's rows. Knows nothing
about figures.
"""
