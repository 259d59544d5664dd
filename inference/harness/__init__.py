"""Measured models do benchmarks of EleutherAI's harness (lm-eval, an optional extra).

Goes in: tasks and the models that are measured. Comes out: for each model an artifact of the figures that the harness gives.
Knows nothing about intervals and reports.
"""
