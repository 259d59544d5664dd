"""Shared by the tests of a service: one that nobody kills."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served_models import Served, rows_here, running_service


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path]) -> Iterator[Served]:
    """A service of a tiny model with both faces."""
    with running_service(tmp_path_factory.mktemp("service"), tiny_models["llama"]) as service:
        yield service


@pytest.fixture(scope="session")
def here(tiny_models: dict[str, Path]) -> list[Any]:
    """The same rows by an engine in this process."""
    return rows_here(tiny_models["llama"])
