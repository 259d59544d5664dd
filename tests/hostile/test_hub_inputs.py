"""What a hub answers is refused in one short line: errors of any length, files that are none, and no token repeated."""

from pathlib import Path

import huggingface_hub
import pytest
from hostile import survives
from requests import ConnectionError as NoConnection

from fusechat.config import ModelSection
from fusechat.models.model_files import resolve_model

TOKEN = "hf_SECRETSECRETSECRET"
ANSWERS = [
    OSError("x" * 1_000_000), OSError(""), OSError("\n\n<html>\n" * 1000), NoConnection("a" * 100_000), OSError("\ud800"),
    OSError(f"401 for https://hub/api?token={TOKEN}"), OSError("\x1b[2J\x1b[1;1Howned"), OSError("a\0b"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(ANSWERS)))
def test_error_of_the_hub_is_one_short_line(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise ANSWERS[number]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    message = survives(lambda: resolve_model(ModelSection(name="a", model="owner/name")))
    assert "the hub did not give it" in message and len(message) < 1000
    assert TOKEN not in message and "\x1b" not in message


def test_folder_of_the_hub_that_holds_no_model_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    for name in ("config.json", "model.safetensors"):
        assert "expected a Hugging Face folder" in survives(
            lambda: resolve_model(ModelSection(name="a", model="owner/name"))
        )
        (tmp_path / name).mkdir()
