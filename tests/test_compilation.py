"""Everything that is compiled imports where nothing may be written."""

import subprocess
import sys

COMPILED = (
    "alignment.quality_loops", "alignment.released.released_shard", "alignment.rows.chain_loops", "alignment.rows.projection",
    "alignment.tokens.token_alignment", "alignment.vocabulary.vocabulary_mapping", "inference.capture.topk_cpu",
    "merge.compute.kernels",
)  # fmt: skip


def test_compiled_modules_import_and_run_without_a_folder_for_their_cache() -> None:
    # The only locator left asks for NUMBA_CACHE_DIR, which is not set: as read-only packages under an unwritable home.
    code = "".join(f"import {name}\n" for name in COMPILED) + (
        "import numpy as np\nfrom merge.compute.kernels import largest_magnitude\n"
        "print(largest_magnitude(np.array([3, 5], np.uint16), np.uint16(0xFFFF)))"
    )
    environment = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator", "PYTHONPATH": ":".join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/usr/bin", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.stdout.strip() == "5", result.stderr


def test_no_module_asks_numba_for_a_cache_by_itself() -> None:
    asked = subprocess.run(
        ["grep", "-rln", "njit(", "--include=*.py", "alignment", "inference", "merge", "trainer", "evaluation", "fusechat"],
        capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    assert asked == ["fusechat/compilation.py"]
