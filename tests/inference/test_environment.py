"""What an engine's process needs around vLLM: objects that its scan for kernels must not ask, ranks that begin by themselves."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from vllm.triton_utils import dispatcher

from inference.engine.vllm_internals import guarded_kernel_scan

llvmlite = pytest.importorskip("llvmlite.binding.ffi")
werkzeug = pytest.importorskip("werkzeug.local")


def test_kernel_scan_passes_over_objects_that_answer_to_any_name_or_to_none() -> None:
    with guarded_kernel_scan():
        asked = dispatcher.hasattr  # type: ignore[attr-defined]
        assert not asked(llvmlite.lib, "__dict__")
        assert not asked(werkzeug.LocalProxy(lambda: 1 / 0), "__dict__")
        assert asked(SimpleNamespace(kernel=1), "__dict__") and asked(SimpleNamespace, "__dict__")
        assert asked(SimpleNamespace(kernel=1), "kernel") and not asked(SimpleNamespace(), "kernel")
    assert "hasattr" not in vars(dispatcher)


def test_rank_runs_its_own_first_lines_and_not_the_script_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing\n"
        "from inference.engine.environment import ranks_of_their_own\n"
        "print('script', flush=True)\n"
        "with ranks_of_their_own():\n"
        "    rank = multiprocessing.get_context('spawn').Process(target=exec, args=('import gc; print(gc.get_threshold())',))\n"
        "    rank.start()\n"
        "    rank.join()\n"
        "print(__spec__, rank.exitcode)\n"
    )
    found = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert found.stdout == "script\n(100000, 10, 10)\nNone 0\n"
