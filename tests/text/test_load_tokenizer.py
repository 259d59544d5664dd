"""Which tokenizer and template a folder gives, and which folders are refused."""

import json
from pathlib import Path

import pytest
from plain_templates import CHATML, LLAMA2, tokenizer
from transformers import ByT5Tokenizer

from fusechat.errors import ModelError
from fusechat.text.chat_template import load_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with a tokenizer without a chat template."""
    tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def set_template(folder: Path, template: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))


def test_load_gives_the_models_own_template_or_the_given_one(folder: Path) -> None:
    set_template(folder, CHATML)
    loaded, template = load_tokenizer(str(folder))
    assert template == CHATML and len(loaded) == len(tokenizer())
    assert load_tokenizer(str(folder), template=LLAMA2)[1] == LLAMA2


def test_load_takes_the_default_of_several_templates(folder: Path) -> None:
    named = [{"name": "default", "template": CHATML}, {"name": "rag", "template": LLAMA2}]
    set_template(folder, named)
    assert load_tokenizer(str(folder))[1] == CHATML
    set_template(folder, [{"name": "one", "template": CHATML}, named[1]])
    with pytest.raises(ModelError, match="path of a Jinja file"):
        load_tokenizer(str(folder))


def test_load_model_without_template_says_how_to_set_one(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"has no chat template; set `template` of this model to `pivot`"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for m in messages %}\n{{ m.content }\n", "line 2 of the chat template is not Jinja"),
        ("{{ raise_exception('never') }}", r"cannot show one question and its answer.*\(never\)"),
        ("{{ sep_token + messages[0].content }}", "'sep_token' is undefined"),
        ("{{ messages[0].content }}", r"message 2 of 2 \(assistant\) 0 times"),
    ],
)
def test_load_unusable_template_is_refused(folder: Path, template: str, expected: str) -> None:
    with pytest.raises(ModelError, match=expected):
        load_tokenizer(str(folder), template=template)


def test_load_folder_without_a_tokenizer_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="no tokenizer could be loaded"):
        load_tokenizer(str(folder.parent / "no-such-folder"))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ModelError, match="no tokenizer could be loaded"):
        load_tokenizer(str(folder), template=CHATML)


def test_load_tokenizer_without_offsets_is_refused(tmp_path: Path) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"its tokenizer is ByT5Tokenizer, expected one with a tokenizer\.json"):
        load_tokenizer(str(tmp_path), template=CHATML)
