"""Compiled kernels give the same bits in every process."""

import os
import subprocess
import sys
from pathlib import Path

SUMS = """
import numpy as np
from merge.compute import election_kernels, kernels

rows = np.random.default_rng(0).normal(size=(4, 5000)).astype(np.float32)
ones, masses = np.ones(3, np.float32), np.zeros((3, 3))
election_kernels.elected_sum(rows.view(np.uint32), ones, ones, np.float32(0), True, np.float32(1), np.empty(5000, np.float32), masses)
print(masses.tobytes().hex())
"""


def test_kernel_just_compiled_and_kernel_read_from_the_cache_give_the_same_bits(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    printed = [
        subprocess.run([sys.executable, "-c", SUMS], env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert printed[0] == printed[1]
    assert list(tmp_path.rglob("*elected_sum*.nbc"))  # the second process did read it
