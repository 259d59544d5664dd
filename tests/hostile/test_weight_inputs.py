"""Weights and indices that mean harm are refused by name: sizes beyond the file, overlapping, negative, names outside the folder."""

import os
from pathlib import Path

import pytest
from hostile import documents, nested, survives
from hostile_models import entry, write_weights
from hypothesis import given, settings
from hypothesis import strategies as st

from fusechat.models.digests import digests_of
from fusechat.models.model_files import INDEX_FILE, check_trainable, read_model_config
from merge.files.checkpoint import Checkpoint
from merge.files.vocabulary import read_vocabulary

HEADERS: list[object] = [
    {"a": entry(data_offsets=[0, 2**63])}, {"a": entry(data_offsets=[-64, 0])}, {"a": entry(shape=[-4, -4])},
    {"a": entry(shape=[-4, 4], data_offsets=[64, 0])}, {"a": entry(shape=[2**63, 0], data_offsets=[0, 0], dtype="Q")},
    {"a": entry(shape=[4.5, 4])}, {"a": entry(shape=["4", "4"])}, {"a": entry(shape="44")}, {"a": entry(data_offsets=[0, 1, 2])},
    {"a": entry(data_offsets=[0])}, {"a": entry(dtype=["F32"])}, {"a": entry(dtype={})}, {"a": entry(shape=[True, 16])},
    {"a": entry(shape=[1] * 100_000 + [16])}, {"x" * 100_000: entry(dtype="Q")}, {"a": entry(shape=[4], data_offsets=[0, 64])},
    {"a": 5}, {"a": None}, [], 5, None, b"\xff\xfe{}", b"[" * 5000 + b"]" * 5000, b'{"a":' * 5000,
    b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 64]}}',
    b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 64]}}',
    b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 64]}}',
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(HEADERS)))
def test_header_of_weights_that_means_harm_is_refused(model_folder: Path, number: int) -> None:
    write_weights(model_folder / "model.safetensors", HEADERS[number])
    assert survives(lambda: Checkpoint(model_folder))
    survives(lambda: check_trainable(model_folder, "model"))


@pytest.mark.parametrize("length", [0, 1, 7, 100 * 2**20, 10**9, 2**63, 2**64 - 1])
def test_header_of_weights_of_another_length_is_refused(model_folder: Path, length: int) -> None:
    write_weights(model_folder / "model.safetensors", {"a": entry()}, length)
    assert survives(lambda: Checkpoint(model_folder))
    survives(lambda: check_trainable(model_folder, "model"))


@settings(max_examples=200, deadline=None)
@given(
    changes=st.fixed_dictionaries(
        {}, optional={"dtype": documents, "shape": st.lists(st.integers() | documents, max_size=4),
                      "data_offsets": st.lists(st.integers() | documents, max_size=3)}
    )
)  # fmt: skip
def test_any_entry_of_a_header_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, object]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any_entry"
    folder.mkdir(exist_ok=True)
    write_weights(folder / "model.safetensors", {"a": entry(**changes)})
    survives(lambda: [tensor.raw(0, tensor.num_elements) for tensor in Checkpoint(folder).tensors.values()])


INDICES = [
    "[]", "5", '{"weight_map": 5}', '{"weight_map": [1]}', '{"weight_map": null}', '{"weight_map": {"a": "../x"}}',
    '{"weight_map": {"a": ".."}}', '{"weight_map": {"a": 5}}', '{"weight_map": {"a": ""}}', '{"weight_map": {"a": {}}}',
    '{"weight_map": {"a": "a\\u0000"}}', '{"weight_map": {"a": "\\ud800"}}', '{"weight_map": {"a": "/etc/passwd"}}',
    '{"weight_map": {"a": "' + "x" * 300 + '"}}', '{"weight_map": {"b": "model.safetensors"}}', nested(5000), "9" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(INDICES)))
def test_index_that_means_harm_is_refused(model_folder: Path, number: int) -> None:
    (model_folder / INDEX_FILE).write_text(INDICES[number])
    assert survives(lambda: Checkpoint(model_folder))
    survives(lambda: check_trainable(model_folder, "model"))
    survives(lambda: digests_of(model_folder))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", INDEX_FILE, "tokenizer.json", "adapter_config.json"]
)
@pytest.mark.parametrize("is_pipe", [True, False])
def test_pipes_and_devices_in_a_model_folder_are_refused(model_folder: Path, name: str, is_pipe: bool) -> None:
    (model_folder / name).unlink(missing_ok=True)
    if is_pipe:
        os.mkfifo(model_folder / name)
    else:
        (model_folder / name).symlink_to("/dev/zero")
    for read in (
        lambda: Checkpoint(model_folder), lambda: check_trainable(model_folder, "model"), lambda: digests_of(model_folder),
        lambda: read_model_config(model_folder), lambda: read_vocabulary(model_folder),
    ):  # fmt: skip
        survives(read)
