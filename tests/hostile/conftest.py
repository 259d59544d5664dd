from pathlib import Path

import pytest
from hostile_models import tiny_folder


@pytest.fixture(scope="session", autouse=True)
def imported() -> None:
    """What is slow when it is first used: the seconds that a test gives are for the input."""
    from transformers import AutoConfig, AutoTokenizer

    AutoConfig.for_model("llama")
    assert AutoTokenizer


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A model folder that each test spoils."""
    return tiny_folder(tmp_path / "model")
