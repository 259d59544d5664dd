"""What the stage refuses: fields, artifacts that do not belong together, a loss that is not finite."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import trainer_runs
import zarr
from resealed import seal_again
from stages_here import train

from fusechat.config import RunConfig
from fusechat.errors import ArtifactError, ConfigError, FuseChatError, ModelError
from fusechat.storage.tokens_reader import read_tokens
from fusechat.storage.zarr_arrays import ATTRIBUTE
from trainer import stage


def test_bad_loss_stops_with_the_dialogues_of_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trl = {"learning_rate": 1e30, "max_grad_norm": 0, "warmup_steps": 0, "per_device_train_batch_size": 2}
    config = trainer_runs.make_run(tmp_path, trl=trl)
    with pytest.raises(FuseChatError, match=r"the loss is (nan|inf).*dialogue-\d+, dialogue-\d+; expected") as caught:
        train(config, "other")
    assert "step " in str(caught.value)


@pytest.mark.parametrize(
    ("trl", "message"),
    [
        ({"learning_rat": 1}, "did you mean 'learning_rate'"),
        ({"output_dir": "x"}, "cannot be set"),
        ({"lr_scheduler_type": "sine"}, "sine"),
        ({"padding_free": True}, "FlashAttention"),
        ({"max_length": 2}, "raise it"),
    ],
)
def test_wrong_fields_are_refused_before_the_model_loads(
    trl: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = trainer_runs.make_run(tmp_path, trl=trl)
    monkeypatch.setattr(stage.target_model, "load_pivot", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=message):
        train(config, "other")


def test_rows_of_other_tokens_are_refused(tmp_path: Path) -> None:
    config = trainer_runs.make_run(tmp_path)
    path = Path(config.aligned_url("other")) / "artifact.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "parents": {"tokens": "0123456789abcdef"}}))
    seal_again(path.parent)
    with pytest.raises(ArtifactError, match=r"0123456789abcdef.*run the stages before"):
        train(config, "other")


def test_pivot_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    config = trainer_runs.make_run(tmp_path)
    file = Path(config.pivot.model) / "tokenizer.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(ModelError, match="tokenizer files have digest"):
        train(config, "other")


def _other_vocabulary(config: RunConfig) -> None:
    _change_attributes(Path(config.aligned_url("other")), vocab_size=401)
    seal_again(config.aligned_url("other"))


def _other_rows(config: RunConfig) -> None:
    # As many as there were, but cut elsewhere into dialogues.
    tokens = read_tokens(config.tokens_url("pivot"))
    moved = tokens.offsets.copy()
    moved[1] -= 2
    dataclasses.replace(tokens, offsets=moved).write(config.tokens_url("pivot"))


def _other_template(config: RunConfig) -> None:
    _change_attributes(Path(config.tokens_url("pivot")), template=tiny_models.PLAIN)


def _change_attributes(folder: Path, **changes: object) -> None:
    group = zarr.open_group(str(folder), mode="a")
    group.attrs[ATTRIBUTE] = {**group.attrs[ATTRIBUTE], **changes}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_vocabulary, r"vocabulary of 401, the pivot's has \d+; run the stages"),
        (_other_rows, "its rows are not those of"),
        (_other_template, r"pivot\.template: 'native' is not the template"),
    ],
)
def test_artifacts_that_do_not_belong_together_are_refused_before_the_model_loads(
    change: Callable[[RunConfig], None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = trainer_runs.make_run(tmp_path)
    monkeypatch.setattr(stage.target_model, "load_pivot", lambda *_: pytest.fail("loaded"))
    change(config)
    with pytest.raises((ArtifactError, ConfigError), match=message):
        train(config, "other")
