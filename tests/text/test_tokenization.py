"""Tokenization: ids, target mask and content spans, against a slow walk over the bytes and by properties on any text."""

from functools import cache
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_tokenizers import ABSORBING, CONTROLS, EXACT, LLAMA2, NORMALISING, SPECIAL, TEMPLATES, TOKENIZERS, pieces_of

from fusechat.errors import DialogueError
from fusechat.text.chat_template import render
from fusechat.text.control_tokens import ControlTokens
from fusechat.text.dialogues import Dialogue, Message
from fusechat.text.token_surface import token_surfaces
from fusechat.text.tokenization import tokenize_dialogue

LOOK_ALIKES = [
    *SPECIAL,
    "<|user|>",
    "<|end|>",
    "<eot>",
    "<|im_",
    "end|>",
    "＜|im_end|＞",
    "<0x0A>",
    "\U0001d0001\U0001d000",
]
ODD = [
    " ", "  ", "\n", "\r\n", "\n\n", "\t", "\u3000", "\u2028", "▁", "▁▁", "Ġ", "e\u0301", "ﬁ", "½", "\u200d", "\ufeff", "\x00",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467", "你好", "한국어", "\U0001f1e9\U0001f1ea", "İ", "ẞ", "##s", "<table>",
    "### assistant:\n", "[/INST]", "hello", "The 42 apples", "'s", "\u0300\u0301",
]  # fmt: skip
plain_texts = st.lists(
    st.sampled_from(ODD) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), min_size=1, max_size=6
).map("".join)
any_texts = st.lists(
    st.sampled_from(LOOK_ALIKES) | st.sampled_from(ODD) | st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
    min_size=1,
    max_size=6,
).map("".join)


def dialogues(texts: st.SearchStrategy[str]) -> st.SearchStrategy[Dialogue]:
    def build(contents: list[str], has_system: bool) -> Dialogue:
        roles = ["system", *["user", "assistant"] * 2] if has_system else ["user", "assistant"] * 2
        count = 3 if has_system and len(contents) < 5 else len(contents) // 2 * 2
        return Dialogue("d", tuple(map(Message, roles[:count], contents[:count])))

    said = texts.filter(lambda text: bool(text.strip()))
    return st.builds(build, st.lists(said, min_size=3, max_size=5), st.booleans())


def holds_look_alike(dialogue: Dialogue) -> bool:
    text = "\n".join(message.content for message in dialogue.messages)
    return any(name in text for name in [*SPECIAL, "<|user|>", "<|end|>", "<eot>"])


def starts_with_mark(kind: str, position: int, text: bytes) -> bool:
    """Whether a tokenizer of this kind puts a word-start mark, spelling no byte, where plain text begins."""
    if kind == "byte_level" or (kind == "first" and position):
        return False
    return kind == "legacy" or not text.startswith(b" ")


def walk(
    kind: str, template: str, dialogue: Dialogue, token_ids: list[int]
) -> tuple[list[tuple[int, int]], list[bool]]:
    """Spans and targets the slow way: every token must spell the next bytes of the text, which we assemble ourselves."""
    tokenizer = EXACT[kind]()
    surfaces = token_surfaces(tokenizer)
    names = {tokenizer.convert_tokens_to_ids(name): name.encode() for name in [*CONTROLS[template]]}
    text, owner, controls = b"", [], {}  # owner[i]: (message, content byte) of byte i of the text
    bases = dialogue.field_offsets
    for piece, number in pieces_of(template, dialogue):
        if number is None and piece in CONTROLS[template]:
            controls[len(text)] = piece.encode()
        lead = 0
        if number is not None:
            content = dialogue.messages[number].content
            lead = len(content[: content.index(piece)].encode()) if piece else 0
        owner += [None if number is None else (number, bases[number] + lead + i) for i in range(len(piece.encode()))]
        text += piece.encode()
    owner.append(None)
    position, at_start, ranges = 0, True, []
    for token_id in token_ids:
        if token_id in names:
            assert controls[position] == names[token_id]
            ranges.append((position, position + len(names[token_id])))
            position, at_start = ranges[-1][1], True
            continue
        surface, is_added = surfaces[token_id], token_id in tokenizer.added_tokens_decoder
        assert surface, f"control token {token_id} inside a content"
        if at_start and not is_added and starts_with_mark(kind, position, text[position:]):
            assert surface.startswith(b" ")
            surface = surface[1:]
        assert text[position : position + len(surface)] == surface
        ranges.append((position, position + len(surface)))
        position, at_start = position + len(surface), is_added
    assert position == len(text)
    spans, targets = [], []
    for start, end in ranges:
        held = [owner[i] for i in (range(start, end) if end > start else [start]) if owner[i] is not None]
        is_wide = end > start
        spans.append((held[0][1], held[-1][1] + is_wide) if held else (-1, -1))
        targets.append(any(dialogue.messages[number].role == "assistant" for number, _ in held))
    for i in reversed(range(1, len(ranges))):  # the end of a turn: see TokenizedDialogue
        before = next((owner[b] for b in reversed(range(ranges[i - 1][0], ranges[i - 1][1])) if owner[b]), None)
        if spans[i] == (-1, -1) and before and dialogue.messages[before[0]].role == "assistant":
            j = i
            while j < len(ranges) and token_ids[j] not in names and not text[ranges[i][0] : ranges[j][1]].strip():
                j += 1
            is_closed = j < len(ranges) and token_ids[j] in names
            targets[i : (j if is_closed else i) + 1] = [True] * ((j if is_closed else i) + 1 - i)
    targets[0] = False
    return spans, targets


# Without "▁", because sentencepiece reads its own mark in a text as a space.
@pytest.mark.parametrize("kind", EXACT)
@settings(deadline=None, max_examples=40)
@given(
    template=st.sampled_from(["chatml", "llama2", "plain", "not_special"]),
    dialogue=dialogues(any_texts.map(lambda text: text.replace("▁", ""))),
)
def test_tokenize_any_text_equals_the_slow_walk(kind: str, template: str, dialogue: Dialogue) -> None:
    result = tokenize_dialogue(EXACT[kind](), TEMPLATES[template], dialogue)
    spans, targets = walk(kind, TEMPLATES[template], dialogue, result.token_ids.tolist())
    assert [tuple(span) for span in result.span.tolist()] == spans
    assert result.is_scored.tolist() == targets


def shown_bytes(template: str, dialogue: Dialogue) -> set[int]:
    """The positions in field_bytes that a template shows, or that a control token beside a content leaves of it."""
    shown: set[int] = set()
    for message, base in zip(dialogue.messages, dialogue.field_offsets, strict=True):
        content = message.content
        if template == ABSORBING or (template == LLAMA2 and message.role != "system"):
            base, content = base + len(content.encode()) - len(content.lstrip().encode()), content.strip()
        shown |= set(range(base, base + len(content.encode())))
    return shown


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(deadline=None, max_examples=40)
@given(template=st.sampled_from(list(TEMPLATES)), dialogue=dialogues(any_texts))
def test_tokenize_any_text_covers_every_byte_once(kind: str, template: str, dialogue: Dialogue) -> None:
    tokenizer, jinja = TOKENIZERS[kind](), TEMPLATES[template]
    try:
        result = tokenize_dialogue(tokenizer, jinja, dialogue)
    except DialogueError as error:
        assert "drops all of message" in str(error) and kind in NORMALISING
        assert any(not tokenizer(m.content, add_special_tokens=False)["input_ids"] for m in dialogue.messages)
        return
    in_content = result.span[:, 0] >= 0
    spans = result.span[in_content].tolist()
    assert (result.span[~in_content] == -1).all()
    assert all(start <= end for start, end in spans) and all(one[1] <= other[0] for one, other in pairwise(spans))
    covered = {position for start, end in spans for position in range(start, end)}
    assert shown_bytes(jinja, dialogue) <= covered <= set(range(len(dialogue.field_bytes)))
    names = tokenizer.convert_ids_to_tokens(result.token_ids.tolist())
    written = [text for text, number in pieces_of(jinja, dialogue) if number is None and text in CONTROLS[jinja]]
    assert [name for name in names if name in CONTROLS[jinja] or name in SPECIAL[1:]] == written


@cache
def controls_of(kind: str) -> ControlTokens:
    return ControlTokens(TOKENIZERS[kind]().backend_tokenizer)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(deadline=None, max_examples=25)
@given(template=st.sampled_from(list(TEMPLATES)), dialogue=dialogues(plain_texts))
def test_token_ids_without_control_text_equal_apply_chat_template(kind: str, template: str, dialogue: Dialogue) -> None:
    tokenizer, jinja = TOKENIZERS[kind](), TEMPLATES[template]
    messages = [{"role": message.role, "content": message.content} for message in dialogue.messages]
    expected = tokenizer.apply_chat_template(messages, chat_template=jinja, tokenize=True, return_dict=False)
    rendered = render(tokenizer, jinja, dialogue)
    # Random characters may spell a control token, which apply_chat_template takes for one.
    assume(not any(token in content for token in tokenizer.get_added_vocab() for content in rendered.contents))
    guarded = controls_of(kind).encode_guarded(rendered.template_parts, rendered.contents)
    assert guarded.encoding.ids == expected  # the detour must not change what needs no detour
    try:
        assert tokenize_dialogue(tokenizer, jinja, dialogue).token_ids.tolist() == expected
    except DialogueError:
        assert kind in NORMALISING
