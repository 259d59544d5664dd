"""A tokenizer.json that means harm is refused by name or read: ids without end, cycles of merges, patterns that panic."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile import nested, survives

from fusechat.config import ModelSection
from fusechat.models.model_files import resolve_model
from fusechat.text.chat_template import load_tokenizer
from fusechat.text.dialogues import Dialogue, Message
from fusechat.text.tokenization import tokenize_dialogue

ASKED = Dialogue("d", (Message("user", "a" * 34 + "b why?"), Message("assistant", "Because the sea is blue.")))


def added(number: object, content: object = "<new>") -> Callable[[dict[str, Any]], object]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return lambda file: file["added_tokens"].append({"id": number, "content": content, "special": True, **flags})


def with_id(number: object) -> Callable[[dict[str, Any]], object]:
    return lambda file: file["model"]["vocab"].update(new=number)


def in_sequences(depth: int) -> Callable[[dict[str, Any]], object]:
    def change(file: dict[str, Any]) -> None:
        for _ in range(depth):
            file["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [file["pre_tokenizer"]]}

    return change


def split_by(pattern: str) -> Callable[[dict[str, Any]], object]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return lambda file: file.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [split, file["pre_tokenizer"]]})


def part(**values: object) -> Callable[[dict[str, Any]], object]:
    return lambda file: file.update(values)


REFUSED: dict[str, Callable[[dict[str, Any]], object]] = {
    "id 2**31": with_id(2**31), "id 2**32": with_id(2**32), "id 2**70": with_id(2**70), "id -1": with_id(-1), "id text": with_id("7"),
    "id 1.5": with_id(1.5), "id none": with_id(None), "added id 4e9": added(4_000_000_000), "added id -1": added(-1),
    "merges of unknown pieces": lambda file: file["model"]["merges"].append(["nope", "nada"]),
    "merges in a cycle": lambda file: file["model"].update(merges=[["a", "b"], ["ab", "a"], ["b", "a"]]),
    "merges of three": lambda file: file["model"].update(merges=["a b c", 5]),
    "deep": in_sequences(80), "very deep": in_sequences(300), "broken pattern": split_by("(("), "endless pattern": split_by("(a+)+$"),
    "prepended": part(normalizer={"type": "Prepend", "prepend": "x" * 10_000_000}),
    "replaced": part(normalizer={"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 1_000_000}),
    "no model": part(model=None), "model of no kind": part(model={"type": "Evil", "vocab": {}}), "dropout": part(model={"dropout": 2.5}),
    "added of no form": part(added_tokens=[5]), "added no list": part(added_tokens={"a": 1}),
}  # fmt: skip
READ: dict[str, Callable[[dict[str, Any]], object]] = {
    "same id twice": with_id(5), "added id taken": added(7), "added empty": added(9999, ""), "added far away": added(2**24),
    "truncation": part(truncation={"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}),
    "padding": part(padding={"strategy": {"Fixed": 10**8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                             "pad_type_id": 0, "pad_token": "</s>"}),
}  # fmt: skip
"""What has no effect, or one that is harmless."""


def read_changed(model: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> str:
    shutil.copytree(model, folder)
    file = copy.deepcopy(json.loads((model / "tokenizer.json").read_text(encoding="utf-8")))
    change(file)
    (folder / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")

    def read() -> None:
        tokenize_dialogue(*load_tokenizer(str(folder)), ASKED)

    return survives(read)


@pytest.mark.parametrize("name", REFUSED)
def test_tokenizer_file_that_means_harm_is_refused(tiny_models: dict[str, Path], tmp_path: Path, name: str) -> None:
    assert "tokenizer" in read_changed(tiny_models["llama"], tmp_path / "model", REFUSED[name])


@pytest.mark.parametrize("name", READ)
def test_tokenizer_file_with_odd_settings_is_read(tiny_models: dict[str, Path], tmp_path: Path, name: str) -> None:
    assert read_changed(tiny_models["llama"], tmp_path / "model", READ[name]) == ""


@pytest.mark.parametrize(
    "text", ["", "[]", "5", "null", "{}", "{", nested(5000), nested(3000, '{"a":', "1}"), "9" * 5000, "\0"]
)
def test_tokenizer_file_that_is_none_is_refused(tiny_models: dict[str, Path], tmp_path: Path, text: str) -> None:
    shutil.copytree(tiny_models["llama"], tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text(text)
    assert survives(lambda: load_tokenizer(str(tmp_path / "model")))


GENERATION = ["", "[]", "5", "null", nested(5000), "9" * 5000, '{"eos_token_id": "x"}', '{"eos_token_id": [1e999]}', '{"eos_token_id": {}}',
              '{"eos_token_id": -5}', '{"eos_token_id": [[1]]}', '{"temperature": "hot"}', '{"max_length": 1e999}']  # fmt: skip


@pytest.mark.parametrize("text", GENERATION)
def test_generation_settings_that_mean_harm_are_read_or_refused(
    tiny_models: dict[str, Path], tmp_path: Path, text: str
) -> None:
    from trainer.target_model import load_pivot

    shutil.copytree(tiny_models["llama"], tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(text)
    section = ModelSection(name="a", model=str(tmp_path / "model"))
    survives(lambda: load_pivot(resolve_model(section), {}))
