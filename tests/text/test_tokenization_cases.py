"""Tokenization, case by case: tokens that straddle content and template, ends of turn, normalised and dropped characters, cuts."""

import numpy as np
import pytest
from small_tokenizers import (
    ABSORBING,
    CHATML,
    NOT_SPECIAL,
    PLAIN,
    SPECIAL,
    byte_level,
    exchange,
    sentencepiece_bpe,
    unigram,
    wordpiece,
    wrapped,
)
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fusechat.errors import DialogueError, ModelError
from fusechat.text.dialogues import Dialogue, Message
from fusechat.text.fitting import cut_dialogue
from fusechat.text.rendered import ChatTemplate
from fusechat.text.template_heads import spoken
from fusechat.text.tokenization import tokenize_dialogue, tokenize_dialogues, tokenize_prompt


def test_content_that_normalises_into_a_control_token_stays_text() -> None:
    tokenizer = unigram(
        True
    )  # NFKC makes <|im_end|> of the wide brackets, and the vocabulary holds <|im_end|> as a piece
    result = tokenize_dialogue(tokenizer, CHATML, exchange("＜|im_end|＞", "</s> <unk> <s>"))
    names = tokenizer.convert_ids_to_tokens(result.token_ids.tolist())
    assert [name for name in names if name in SPECIAL] == ["<|im_start|>", "<|im_end|>"] * 2


def test_added_token_in_a_content_is_parsed_unless_the_template_writes_it() -> None:
    tokenizer = byte_level()
    eot, table = tokenizer.convert_tokens_to_ids(["<eot>", "<table>"])
    dialogue = exchange("<table>", "a <eot> b")
    assert eot in tokenize_dialogue(tokenizer, CHATML, dialogue).token_ids
    ids = tokenize_dialogue(tokenizer, NOT_SPECIAL, dialogue).token_ids.tolist()
    assert ids.count(eot) == 2 and ids.count(table) == 1


def shown(
    tokenizer: PreTrainedTokenizerFast, template: str, dialogue: Dialogue
) -> list[tuple[str, bytes | None, bool]]:
    """(piece, bytes of the content, is target) of each token."""
    result = tokenize_dialogue(tokenizer, template, dialogue)
    data = dialogue.field_bytes
    return [
        (piece, None if start < 0 else data[start:end], target)
        for piece, (start, end), target in zip(
            tokenizer.convert_ids_to_tokens(result.token_ids.tolist()),
            result.span.tolist(),
            result.is_scored.tolist(),
            strict=True,
        )
    ]


def hand_made(vocabulary: list[str], merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with these merges only."""
    pieces = dict.fromkeys([*sorted(pre_tokenizers.ByteLevel.alphabet()), *vocabulary])
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return wrapped(backend)


def test_token_over_the_start_of_a_content_has_the_contents_part_and_is_target() -> None:
    tokenizer = hand_made(["Ġa", "ab"], [("Ġ", "a")])
    template = "{% for m in messages %}{{ m['role'][0] + ': ' + m['content'] }}{% endfor %}"
    assert shown(tokenizer, template, exchange("a", "ab")) == [
        ("u", None, False), (":", None, False), ("Ġa", b"a", False),
        ("a", None, False), (":", None, False), ("Ġa", b"a", True), ("b", b"b", True),
    ]  # fmt: skip


def test_token_over_the_end_of_a_content_is_target_and_the_next_one_ends_the_turn() -> None:
    tokenizer = hand_made(["!Ċ"], [("!", "Ċ")])
    template = "{% for m in messages %}{{ '#' + m['content'] + '\n' }}{% endfor %}#"
    assert shown(tokenizer, template, exchange("a", "b!")) == [
        ("#", None, False), ("a", b"a", False), ("Ċ", None, False),
        ("#", None, False), ("b", b"b", True), ("!Ċ", b"!", True), ("#", None, True),
    ]  # fmt: skip


def test_token_over_two_contents_has_one_span_over_both() -> None:
    tokenizer = hand_made(["!!", "!!!"], [("!", "!"), ("!!", "!")])
    template = "{% for m in messages %}{{ m['content'] + '!' }}{% endfor %}"
    assert shown(tokenizer, template, exchange("a!", "!b")) == [
        ("a", b"a", False), ("!!!", b"!!", True), ("b", b"b", True), ("!", None, True),
    ]  # fmt: skip


def test_first_token_is_never_target() -> None:
    tokenizer = hand_made([], [])
    template = "{% for m in messages if m['role'] == 'assistant' %}{{ m['content'] }}{% endfor %}"
    dialogue = Dialogue("d", (Message("assistant", "ab"),))
    assert shown(tokenizer, template, dialogue) == [("a", b"a", False), ("b", b"b", True)]


@pytest.mark.parametrize(
    ("ending", "targets"),
    [
        ("<|im_end|>\n", ["<|im_end|>"]),
        (" \n</s>", ["Ġ", "Ċ", "</s>"]),
        ("\n###", ["Ċ"]),
        (" . </s>", ["Ġ"]),
        ("<eot>", ["<eot>"]),
        ("", []),
    ],
)
def test_end_of_turn_reaches_to_the_control_token_if_only_space_lies_between(ending: str, targets: list[str]) -> None:
    template = "{% for m in messages %}{{ '#' + m['content'] + " + repr(ending) + " }}{% endfor %}"
    tokens = shown(hand_made([], []), template, exchange("a", "b"))
    assert [piece for piece, data, is_scored in tokens if is_scored and data is None] == targets
    assert [data for _, data, is_scored in tokens if is_scored and data is not None] == [b"b"]


def test_one_character_over_several_tokens_gets_exact_bytes() -> None:
    for tokenizer in (hand_made([], []), sentencepiece_bpe("first"), unigram(True)):
        tokens = shown(tokenizer, CHATML, exchange("x", "\U0001f600"))
        assert [data for _, data, is_scored in tokens if is_scored and data] == [b"\xf0", b"\x9f", b"\x98", b"\x80"]


def test_word_start_mark_before_a_content_has_an_empty_span_and_is_target() -> None:
    tokens = shown(sentencepiece_bpe("legacy"), ABSORBING.replace("\\n", ""), exchange("x", "喵"))
    assert [(piece, data) for piece, data, is_scored in tokens if is_scored][:2] == [("▁", b""), ("<0xE5>", b"\xe5")]


def test_normalised_character_goes_to_the_last_of_its_tokens() -> None:
    backend = Tokenizer(models.BPE({"f": 0, "i": 1, "x": 2}, []))
    backend.normalizer = normalizers.NFKC()
    tokens = shown(
        wrapped(backend), "{% for m in messages %}{{ m['content'] + '</s>' }}{% endfor %}", exchange("x", "xﬁx")
    )
    assert [(piece, data) for piece, data, is_scored in tokens if is_scored] == [
        ("x", b"x"), ("f", b""), ("i", "ﬁ".encode()), ("x", b"x"), ("</s>", None),
    ]  # fmt: skip


def test_dropped_white_space_goes_to_the_next_token_and_at_the_end_to_the_last() -> None:
    tokens = shown(wordpiece(), CHATML, exchange("x", " Hello  Three \n"))
    spelled = [data for piece, data, is_scored in tokens if is_scored and data is not None]
    assert b"".join(spelled) == b" Hello  Three \n"
    assert spelled[0].startswith(b" ") and spelled[-1].endswith(b" \n") and any(d.startswith(b"  ") for d in spelled)


def test_unknown_token_has_the_range_it_stands_for() -> None:
    tokens = shown(unigram(False), CHATML, exchange("x", "喵喵"))
    assert ("<unk>", "喵喵".encode(), True) in tokens


def test_content_that_the_tokenizer_drops_is_refused() -> None:
    with pytest.raises(DialogueError, match=r"dialogue 'd': the tokenizer drops all of message 2"):
        tokenize_dialogue(wordpiece(), CHATML, exchange("x", "\u200b\u0301"))


def test_tokenize_many_equals_one_by_one_whatever_padding_the_tokenizer_has() -> None:
    tokenizer = sentencepiece_bpe("first")
    several = [exchange("How many?" * n, "three <|im_end|>" if n % 2 else "two") for n in range(1, 6)]
    single = [tokenize_dialogue(tokenizer, CHATML, dialogue) for dialogue in several]
    tokenizer.backend_tokenizer.enable_padding(length=200)
    tokenizer.backend_tokenizer.enable_truncation(max_length=4)
    for one, other in zip(single, tokenize_dialogues(tokenizer, CHATML, several), strict=True):
        assert np.array_equal(one.token_ids, other.token_ids)
        assert np.array_equal(one.span, other.span)
        assert (one.token_ids.dtype, one.is_scored.dtype, one.span.dtype) == ("int32", "bool", "int32")


def test_prompt_is_the_head_of_the_answered_dialogue() -> None:
    tokenizer, dialogue = byte_level(), exchange("How many? <|im_end|>", "three")
    prompt = tokenize_prompt(tokenizer, CHATML, dialogue.messages[:1])
    result = tokenize_dialogue(tokenizer, CHATML, dialogue)
    assert prompt == result.token_ids[: int(np.argmax(result.is_scored))].tolist()


def test_cut_keeps_as_many_exchanges_as_fit() -> None:
    tokenizer = byte_level()
    system = Message("system", "Count.")
    turns = tuple(Message(role, f"{n} apples") for n in range(7) for role in ("user", "assistant"))
    dialogue = Dialogue("d", (system, *turns), "sums")
    lengths = {
        n: len(tokenize_dialogue(tokenizer, CHATML, Dialogue("d", (system, *turns[: 2 * n])))) for n in range(1, 8)
    }
    for limit in range(lengths[1] - 2, lengths[7] + 2):
        kept, note = cut_dialogue(tokenizer, CHATML, dialogue, limit)
        fitting = max((n for n, length in lengths.items() if length <= limit), default=0)
        if not fitting:
            assert kept is None and f"its first exchange has {lengths[1]:,} tokens" in note
        elif fitting == 7:
            assert kept is dialogue and not note
        else:
            assert kept == Dialogue("d", (system, *turns[: 2 * fitting]), "sums")
            assert f"cut from 15 to {1 + 2 * fitting} messages" in note


def test_single_exchange_that_is_too_long_is_set_aside() -> None:
    kept, note = cut_dialogue(byte_level(), CHATML, exchange("x", "three " * 50), 20)
    assert kept is None and "set aside" in note and "max_tokens is 20" in note


def test_tokenizer_without_backend_is_refused() -> None:
    class Slow:
        name_or_path = "old/model"

        def __len__(self) -> int:
            return 3

        def apply_chat_template(self, messages: list[dict], **_: object) -> str:
            return "".join(message["content"] for message in messages)

    with pytest.raises(ModelError, match=r"old/model: found a Slow, expected a tokenizer with a tokenizer\.json"):
        tokenize_dialogue(Slow(), PLAIN, exchange("a", "b"))


def test_control_tokens_are_kept_apart_even_from_the_notes_that_rename_them() -> None:
    tokenizer = byte_level()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    forged = f"\U0001d000{end}\U0001d000 \U0001d001{end}\U0001d001 <|im_end|>"
    ids = tokenize_dialogue(tokenizer, CHATML, exchange(forged, forged)).token_ids.tolist()
    assert ids.count(end) == 2
    every_note = "".join(map(chr, range(0x1D000, 0x1D0F6)))
    with pytest.raises(ModelError, match="expected one to be free"):
        tokenize_dialogue(tokenizer, CHATML, exchange(every_note, "<|im_end|>"))


def test_end_of_several_control_tokens_is_scored_whole_and_no_part_of_an_answer() -> None:
    tokenizer = byte_level()
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>message</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    result = tokenize_dialogue(tokenizer, template, exchange("Where?", "Here."))
    written = result.token_ids[result.is_scored].tolist()
    assert tokenizer.decode(written) == "Here.<|im_end|>message</s>"
    assert spoken(tokenizer, ChatTemplate(template), written) == "Here."
    assert (
        spoken(tokenizer, ChatTemplate(template), written[:-1]) == "Here."
    )  # without the token that an engine stops at
