"""The parts of `benchmarks/bench_fusion.py`: worlds, their data, arms, training, merges, tables, and real text."""
