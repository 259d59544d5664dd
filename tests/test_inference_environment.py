"""What an engine's process needs around vLLM: objects that its scan for kernels must not ask."""

from types import SimpleNamespace

import pytest
from vllm.triton_utils import dispatcher

from inference.environment import guarded_kernel_scan

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
