"""Tokens that are written while dialogues come are those that are made of all dialogues at once."""

from pathlib import Path

import numpy as np
import pytest

from fusechat.errors import ModelError
from fusechat.storage import artifact
from fusechat.storage.tokens import OF_TOKENS
from fusechat.storage.tokens_reader import TokensReader
from fusechat.text import streamed_tokens
from fusechat.text.chat_template import load_tokenizer
from fusechat.text.dialogues import Dialogue, Message
from fusechat.text.model_tokens import ModelTokens
from fusechat.text.rendered import ChatTemplate


def maker_of(folder: Path, template: str | None = None) -> ModelTokens:
    tokenizer, text = load_tokenizer(str(folder))
    return ModelTokens("scorer", folder, tokenizer, ChatTemplate(template or text), is_pivot=False)


def dialogue(number: int) -> Dialogue:
    return Dialogue(
        f"d{number}",
        (Message("user", f"What is {number}?"), Message("assistant", f"It is {number}. " * (1 + number % 3))),
    )


@pytest.mark.parametrize("per_piece", [3, 100])
def test_streamed_tokens_are_those_of_all_dialogues_at_once(
    per_piece: int, tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed_tokens, "PIECE_DIALOGUES", per_piece)
    maker, dialogues, url = (
        maker_of(tiny_models["llama"]),
        [dialogue(number) for number in range(10)],
        str(tmp_path / "t"),
    )
    claim = artifact.claim(url, "tokens", settings={"of": "a test"}, parents={}, if_changed="refuse")
    sums = streamed_tokens.write_streamed(claim, maker, iter(dialogues), {"of": "a test"})
    whole, counts = maker.make(dialogues)
    reader = TokensReader(url)
    read = reader.read(range(10))
    assert sums.dialogues == 10 and sums.tokens == whole.num_tokens and sums.turn_end_ids == tuple(counts.turn_end_ids)
    for name in (*OF_TOKENS, "call_digest", "offsets"):
        assert np.array_equal(getattr(read, name), getattr(whole, name)), name
    assert reader.attributes["of"] == "a test" and reader.attributes["turn_end_ids"] == counts.turn_end_ids
    assert not Path(f"{url}.pieces").exists()


def test_a_model_that_can_read_no_dialogue_is_named(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    maker = maker_of(tiny_models["llama"], "{{ raise_exception('never') }}")
    claim = artifact.claim(str(tmp_path / "t"), "tokens", settings={}, parents={}, if_changed="refuse")
    with pytest.raises(ModelError, match="scorer: none of the 2 dialogues"):
        streamed_tokens.write_streamed(claim, maker, map(dialogue, range(2)), {})
