"""Faults for `bench_faults`: `world` has the runs, `command` starts them, `equal` and `endings` judge what is left, and each
family of faults has a file of its own.
"""
