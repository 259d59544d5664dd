"""Opening checkpoints and laying targets on the base: forms, vocabularies, adapters, and everything that does not fit."""

import json
import resource
from pathlib import Path
from typing import Any

import merge_models
import numpy as np
import pytest
import torch
from merge_models import VOCABULARY, llama_weights, save_model, save_tokenizer, updated
from tensor_values import values

from fusechat.errors import ConfigError, ModelError
from merge.files.checkpoint import Checkpoint
from merge.inputs import Inputs, summary
from merge.recipe import check_changed, check_finite

WORDS = [f"w{i}" for i in range(70)]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_model(tmp_path / "base", llama_weights())


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return save_model(tmp_path / "target", updated(llama_weights(), seed=1))


@pytest.mark.parametrize("shards", [1, 3])
def test_checkpoint_reads_what_safetensors_wrote(tmp_path: Path, shards: int) -> None:
    weights = llama_weights()
    weights["model.norm.weight"] = weights["model.norm.weight"].bfloat16()
    folder = save_model(tmp_path / "m", weights, shards=shards)
    inputs = Inputs(folder, {"t": save_model(tmp_path / "t", updated(weights, seed=1), shards=4 - shards)})
    assert set(inputs.base.tensors) == set(weights)
    for name, tensor in updated(weights, seed=1).items():
        assert torch.equal(values(inputs, name), tensor.float())


def test_checkpoint_at_odd_places_in_its_file_is_read(tmp_path: Path) -> None:
    weights = {"flag": torch.tensor([True]), **llama_weights()}
    header: dict[str, Any] = {}
    data = b""
    for name, tensor in weights.items():  # one byte first: every later tensor starts at an odd byte
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        dtype = "BOOL" if tensor.dtype == torch.bool else "F32"
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    folder = save_model(tmp_path / "m", llama_weights())
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    moved = save_model(tmp_path / "t", {"flag": torch.tensor([True]), **updated(llama_weights(), seed=1)})
    inputs = Inputs(moved, {"t": folder})
    for name, tensor in llama_weights().items():
        assert torch.equal(values(inputs, name), tensor)


def test_more_files_than_the_usual_limit_of_open_ones(tmp_path: Path) -> None:
    weights = llama_weights()
    base = save_model(tmp_path / "base", weights, shards=20)
    targets = {f"t{j}": save_model(tmp_path / f"t{j}", updated(weights, seed=j), shards=20) for j in range(1, 5)}
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        check_finite(Inputs(base, targets))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_missing_folder_is_named(tmp_path: Path, base: Path) -> None:
    with pytest.raises(ModelError, match="nowhere: no such folder"):
        Inputs(base, {"t": tmp_path / "nowhere"})


def test_pickles_are_refused(tmp_path: Path, base: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(ModelError, match=r"pickles such as pytorch_model.bin are refused"):
        Inputs(base, {"t": folder})


@pytest.mark.parametrize("size", [0, 5, 100, 20_000])
def test_truncated_file_is_named_with_tensor(base: Path, target: Path, size: int) -> None:
    file = target / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ModelError, match=r"target/model.safetensors: cut") as error:
        Inputs(base, {"t": target})
    assert size < 20_000 or "tensor 'model." in str(error.value) or "tensor 'lm_head" in str(error.value)


def test_garbage_header_is_named(base: Path, target: Path) -> None:
    (target / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"{{{{")
    with pytest.raises(ModelError, match="its safetensors header is broken"):
        Inputs(base, {"t": target})


def test_header_that_lies_about_sizes_is_refused(tmp_path: Path) -> None:
    for number, entry in enumerate(
        [
            {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
            {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
            {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]},
        ]
    ):
        folder = save_model(tmp_path / str(number), llama_weights())
        text = json.dumps({"x": entry}).encode()
        (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 8)
        with pytest.raises(ModelError, match="tensor 'x'"):
            Checkpoint(folder)


def test_index_that_names_an_absent_file_or_tensor_is_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", llama_weights(), shards=2)
    index = folder / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(document))
    with pytest.raises(ModelError, match="tensor 'ghost'"):
        Checkpoint(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00002.safetensors: named in .* but not there"):
        Checkpoint(folder)


def test_another_architecture_is_refused(tmp_path: Path, base: Path) -> None:
    other = save_model(tmp_path / "t", llama_weights(), model_type="mistral")
    with pytest.raises(ModelError, match=r"t/config.json: another architecture: model_type is 'mistral'"):
        Inputs(base, {"t": other})


def test_another_shape_is_refused_with_file_and_tensor(tmp_path: Path, base: Path) -> None:
    weights = llama_weights()
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(50, 32)
    other = save_model(tmp_path / "t", weights)
    with pytest.raises(
        ModelError, match=r"model.safetensors: tensor 'model.layers.1.mlp.up_proj.weight' has shape \[50, 32\]"
    ):
        Inputs(base, {"t": other})


def test_missing_and_extra_tensors_are_named(tmp_path: Path, base: Path) -> None:
    weights = llama_weights()
    del weights["model.layers.0.mlp.up_proj.weight"]
    with pytest.raises(ModelError, match=r"lacks tensors that the base has: model.layers.0.mlp.up_proj.weight"):
        Inputs(base, {"t": save_model(tmp_path / "a", weights)})
    more = llama_weights() | {"model.layers.0.gate.bias": torch.zeros(3)}
    with pytest.raises(ModelError, match=r"has tensors that the base lacks: model.layers.0.gate.bias"):
        Inputs(base, {"t": save_model(tmp_path / "b", more)})


def test_buffers_that_loaders_compute_are_ignored(tmp_path: Path, base: Path) -> None:
    weights = updated(llama_weights(), seed=1) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    inputs = Inputs(base, {"t": save_model(tmp_path / "t", weights)})
    assert len(inputs.merged_tensors()) == len(llama_weights())


def test_no_targets_and_the_base_as_target_are_refused(base: Path) -> None:
    with pytest.raises(ConfigError, match="targets: found none"):
        Inputs(base, {})
    with pytest.raises(ConfigError, match="is the base itself"):
        Inputs(base, {"t": base})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_with_file_tensor_and_place(
    tmp_path: Path, base: Path, bad: float
) -> None:
    weights = llama_weights()
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = bad
    inputs = Inputs(base, {"t": save_model(tmp_path / "t", weights)})
    with pytest.raises(
        ModelError,
        match=r"t/model.safetensors: tensor 'model.layers.1.mlp.down_proj.weight': NaN or infinity at \[3, 5\]",
    ):
        check_finite(inputs)


def test_target_that_equals_the_base_is_named(tmp_path: Path, base: Path, target: Path) -> None:
    copy = save_model(tmp_path / "copy", llama_weights())
    with pytest.raises(ModelError, match="target 'same' equals the base in every tensor"):
        check_changed(Inputs(base, {"moved": target, "same": copy}))


def test_integer_tensors_must_be_equal(tmp_path: Path) -> None:
    whole = llama_weights() | {"model.table": torch.arange(4)}
    base = save_model(tmp_path / "base", whole)
    good = save_model(tmp_path / "good", updated(llama_weights(), seed=1) | {"model.table": torch.arange(4)})
    bad = save_model(tmp_path / "bad", updated(llama_weights(), seed=1) | {"model.table": torch.arange(1, 5)})
    check_changed(Inputs(base, {"t": good}))
    with pytest.raises(ModelError, match=r"tensor 'model.table' \(I64\) differs from the base's and cannot be merged"):
        check_changed(Inputs(base, {"t": bad}))


def test_tied_target_of_an_untied_base_gives_its_embedding_as_head(tmp_path: Path, base: Path) -> None:
    weights = updated(llama_weights(tied=True), seed=1)
    inputs = Inputs(base, {"t": save_model(tmp_path / "t", weights, tie_word_embeddings=True)})
    assert torch.equal(values(inputs, "lm_head.weight"), weights["model.embed_tokens.weight"])


def test_tied_base_takes_a_target_that_stores_the_same_head_and_refuses_another(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", llama_weights(tied=True), tie_word_embeddings=True)
    weights = updated(llama_weights(tied=True), seed=1)
    same = weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    inputs = Inputs(base, {"t": save_model(tmp_path / "same", same, tie_word_embeddings=True)})
    assert "lm_head.weight" not in [tensor.name for tensor in inputs.merged_tensors()]
    other = weights | {"lm_head.weight": weights["model.embed_tokens.weight"] + 1}
    with pytest.raises(ModelError, match=r"'lm_head.weight' differs from its embedding, and the base ties the two"):
        Inputs(base, {"t": save_model(tmp_path / "other", other)})


def vocabulary_models(tmp_path: Path, tokens: list[str], rows: int, added: dict[str, int] | None = None) -> Inputs:
    """A base with the tokens of WORDS, and a target with other tokens in an embedding of `rows` rows."""
    base = save_model(tmp_path / "base", llama_weights())
    save_tokenizer(base, WORDS, added={"<end>": 70})
    weights = updated(llama_weights(), seed=1)
    generator = torch.Generator().manual_seed(5)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.randn(rows, merge_models.HIDDEN, generator=generator)
    target = save_model(tmp_path / "target", weights, vocab_size=rows)
    save_tokenizer(target, tokens, added=added)
    return Inputs(base, {"t": target})


def test_rows_are_joined_by_token_where_ids_differ(tmp_path: Path) -> None:
    order = [WORDS[i] for i in np.random.default_rng(0).permutation(len(WORDS))]
    inputs = vocabulary_models(tmp_path, order, VOCABULARY, {"<new>": 70, "<end>": 71})
    base_rows = llama_weights()["lm_head.weight"]
    read, raw = values(inputs, "lm_head.weight"), torch.empty(VOCABULARY, merge_models.HIDDEN)
    tensor = inputs.targets["t"].tensors["lm_head.weight"]
    tensor.read(0, tensor.num_elements, raw.numpy().reshape(-1))
    for i, word in enumerate(WORDS):
        assert torch.equal(read[i], raw[order.index(word)])
    assert torch.equal(read[70], raw[71])  # <end>, which stands at another id there
    assert torch.equal(read[71], base_rows[71])  # padding here, <end> there
    assert torch.equal(read[72:], raw[72:])  # padding in both
    assert summary(inputs)["t"] == {"rows_from_base": 1, "tokens_dropped": ["<new>"], "tokens_missing": []}


@pytest.mark.parametrize("rows", [71, 100])
def test_vocabulary_of_another_length_is_joined(tmp_path: Path, rows: int) -> None:
    inputs = vocabulary_models(tmp_path, WORDS, rows, {"<end>": 70})
    read, base_rows = values(inputs, "model.embed_tokens.weight"), llama_weights()["model.embed_tokens.weight"]
    tensor = inputs.targets["t"].tensors["model.embed_tokens.weight"]
    raw = torch.empty(tensor.shape)
    tensor.read(0, tensor.num_elements, raw.numpy().reshape(-1))
    shared = min(rows, VOCABULARY)
    assert read.shape == base_rows.shape
    assert torch.equal(read[:shared], raw[:shared])
    assert torch.equal(read[shared:], base_rows[shared:])


def test_token_that_only_the_base_added_keeps_its_row(tmp_path: Path) -> None:
    inputs = vocabulary_models(tmp_path, WORDS, 70)
    assert torch.equal(values(inputs, "lm_head.weight")[70], llama_weights()["lm_head.weight"][70])
    assert summary(inputs)["t"]["tokens_missing"] == ["<end>"]


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"another tokenizer: it lacks 69 of the base's 71 tokens, for example 'w1'"):
        vocabulary_models(tmp_path, ["w0", *(f"x{i}" for i in range(69))], VOCABULARY)


def test_other_number_of_rows_without_tokenizers_is_refused(tmp_path: Path, base: Path) -> None:
    weights = llama_weights()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.zeros(90, merge_models.HIDDEN)
    other = save_model(tmp_path / "t", weights, vocab_size=90)
    with pytest.raises(ModelError, match="its embedding has 90 rows, the base's 80"):
        Inputs(base, {"t": other})


def test_broken_tokenizer_is_named(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", llama_weights())
    save_tokenizer(base, WORDS)
    target = save_model(tmp_path / "t", updated(llama_weights(), seed=1))
    (target / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"t/tokenizer.json: not a readable tokenizer"):
        Inputs(base, {"t": target})
