"""Tokenization: ids, target mask and content spans, against a slow walk over the bytes and by properties on any text."""

import json
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from fusechat.chat_template import render
from fusechat.control_tokens import ControlTokens
from fusechat.dialogues import Dialogue, Message
from fusechat.errors import DialogueError, ModelError
from fusechat.token_surface import token_surfaces
from fusechat.tokenization import cut_dialogue, tokenize_dialogue, tokenize_dialogues, tokenize_prompt

CORPUS = [
    "How many apples are there? There are three apples, and 42 pears.",
    "### User:\nthe assistant said: system user assistant\n\n### Assistant:\n",
    "  def f(x):\n    return x + 1\n\n[INST] hello [/INST] 你好，世界 naïve café ﬁne <|im_start|> <|im_end|>",
] * 3
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
ADDED = [
    AddedToken("<|user|>", special=True, rstrip=True, normalized=False),
    AddedToken("<|end|>", special=True, lstrip=True, normalized=False),
    AddedToken("<eot>", special=False, normalized=False),
    AddedToken("<table>", special=False, normalized=False),
    AddedToken("\n\n", special=False, normalized=False),
]

# Each template as Jinja and as the texts around the contents, written down a second time by hand.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% elif m['role'] == 'system' %}{{ '<<SYS>>' + m['content'] }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
PLAIN = "{% for m in messages %}{{ '### ' + m['role'] + ':\\n' + m['content'] + '\\n\\n' }}{% endfor %}"
ABSORBING = "{% for m in messages %}{{ '<|user|>\\n' + m['content'] + '<|end|>' }}{% endfor %}"
NOT_SPECIAL = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<eot>' }}{% endfor %}"
Pieces = list[tuple[str, int | None]]


def pieces_of(template: str, dialogue: Dialogue) -> Pieces:
    """The rendered text in pieces: (text, message number, or None for the template's own; control tokens stand alone)."""
    pieces: Pieces = []
    for number, message in enumerate(dialogue.messages):
        role, content = message.role, message.content
        if template == CHATML:
            around = ["<|im_start|>", f"{role}\n"], ["<|im_end|>", "\n"]
        elif template == LLAMA2:
            content = content if role == "system" else content.strip()
            around = {
                "user": (["<s>", "[INST] "], [" [/INST]"]),
                "system": (["<<SYS>>"], []),
                "assistant": ([" "], [" ", "</s>"]),
            }[role]
        elif template == PLAIN:
            around = [f"### {role}:\n"], ["\n\n"]
        elif template == ABSORBING:
            around = ["<|user|>", "\n"], ["<|end|>"]
        else:
            around = [f"{role}: "], ["<eot>"]
        pieces += [(text, None) for text in around[0]] + [(content, number)] + [(text, None) for text in around[1]]
    return pieces


CONTROLS = {
    CHATML: SPECIAL[3:],
    LLAMA2: ["<s>", "</s>"],
    PLAIN: [],
    ABSORBING: ["<|user|>", "<|end|>"],
    NOT_SPECIAL: ["<eot>"],
}


def wrapped(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    backend.add_tokens(ADDED)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@cache
def byte_level(normalizer: str | None = None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC() if normalizer == "nfc" else None
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    # As GPT-2's: it cuts white space off the offsets, which must not reach the spans.
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return wrapped(backend)


@cache
def sentencepiece_bpe(prefix: str) -> PreTrainedTokenizerFast:
    """Llama's kind. `prefix`: "legacy" marks the start of every stretch, "first" and "always" as Metaspace names them."""
    source = Tokenizer(models.BPE(unk_token="<unk>"))
    source.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    source.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL[:3], show_progress=False)
    )
    state = json.loads(source.to_str())["model"]
    vocabulary = dict(state["vocab"])
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    merges = [tuple(merge) for merge in state["merges"]]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if prefix == "legacy":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrapped(backend)


@cache
def unigram(byte_fallback: bool) -> PreTrainedTokenizerFast:
    source = Tokenizer(models.Unigram())
    source.pre_tokenizer = pre_tokenizers.Metaspace()
    source.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    )
    state = json.loads(source.to_str())["model"]
    vocabulary = [(piece, score) for piece, score in state["vocab"]]
    if byte_fallback:
        vocabulary += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    backend = Tokenizer(models.Unigram(vocabulary, 0, byte_fallback))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return wrapped(backend)


@cache
def wordpiece() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=250, special_tokens=["<unk>"], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return wrapped(backend)


EXACT: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte_level": byte_level,
    "legacy": lambda: sentencepiece_bpe("legacy"),
    "first": lambda: sentencepiece_bpe("first"),
    "always": lambda: sentencepiece_bpe("always"),
}
NORMALISING: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "nfc": lambda: byte_level("nfc"),
    "unigram": lambda: unigram(False),
    "unigram_bytes": lambda: unigram(True),
    "wordpiece": wordpiece,
}
TOKENIZERS = EXACT | NORMALISING
TEMPLATES = {"chatml": CHATML, "llama2": LLAMA2, "plain": PLAIN, "absorbing": ABSORBING, "not_special": NOT_SPECIAL}

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


def exchange(user: str, assistant: str) -> Dialogue:
    return Dialogue("d", (Message("user", user), Message("assistant", assistant)))


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
    bases = dialogue.content_offsets
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
    assert [tuple(span) for span in result.content_span.tolist()] == spans
    assert result.is_target.tolist() == targets


def shown_bytes(template: str, dialogue: Dialogue) -> set[int]:
    """The positions in content_bytes that a template shows, or that a control token beside a content leaves of it."""
    shown: set[int] = set()
    for message, base in zip(dialogue.messages, dialogue.content_offsets, strict=True):
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
    in_content = result.content_span[:, 0] >= 0
    spans = result.content_span[in_content].tolist()
    assert (result.content_span[~in_content] == -1).all()
    assert all(start <= end for start, end in spans) and all(one[1] <= other[0] for one, other in pairwise(spans))
    covered = {position for start, end in spans for position in range(start, end)}
    assert shown_bytes(jinja, dialogue) <= covered <= set(range(len(dialogue.content_bytes)))
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
    guarded = controls_of(kind).encode_guarded(rendered.template_parts, rendered.contents)
    assert guarded.encoding.ids == expected  # the detour must not change what needs no detour
    try:
        assert tokenize_dialogue(tokenizer, jinja, dialogue).token_ids.tolist() == expected
    except DialogueError:
        assert kind in NORMALISING


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
    data = dialogue.content_bytes
    return [
        (piece, None if start < 0 else data[start:end], target)
        for piece, (start, end), target in zip(
            tokenizer.convert_ids_to_tokens(result.token_ids.tolist()),
            result.content_span.tolist(),
            result.is_target.tolist(),
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
    assert [piece for piece, data, is_target in tokens if is_target and data is None] == targets
    assert [data for _, data, is_target in tokens if is_target and data is not None] == [b"b"]


def test_one_character_over_several_tokens_gets_exact_bytes() -> None:
    for tokenizer in (hand_made([], []), sentencepiece_bpe("first"), unigram(True)):
        tokens = shown(tokenizer, CHATML, exchange("x", "\U0001f600"))
        assert [data for _, data, is_target in tokens if is_target and data] == [b"\xf0", b"\x9f", b"\x98", b"\x80"]


def test_word_start_mark_before_a_content_has_an_empty_span_and_is_target() -> None:
    tokens = shown(sentencepiece_bpe("legacy"), ABSORBING.replace("\\n", ""), exchange("x", "喵"))
    assert [(piece, data) for piece, data, is_target in tokens if is_target][:2] == [("▁", b""), ("<0xE5>", b"\xe5")]


def test_normalised_character_goes_to_the_last_of_its_tokens() -> None:
    backend = Tokenizer(models.BPE({"f": 0, "i": 1, "x": 2}, []))
    backend.normalizer = normalizers.NFKC()
    tokens = shown(
        wrapped(backend), "{% for m in messages %}{{ m['content'] + '</s>' }}{% endfor %}", exchange("x", "xﬁx")
    )
    assert [(piece, data) for piece, data, is_target in tokens if is_target] == [
        ("x", b"x"), ("f", b""), ("i", "ﬁ".encode()), ("x", b"x"), ("</s>", None),
    ]  # fmt: skip


def test_dropped_white_space_goes_to_the_next_token_and_at_the_end_to_the_last() -> None:
    tokens = shown(wordpiece(), CHATML, exchange("x", " Hello  Three \n"))
    spelled = [data for piece, data, is_target in tokens if is_target and data is not None]
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
        assert np.array_equal(one.content_span, other.content_span)
        assert (one.token_ids.dtype, one.is_target.dtype, one.content_span.dtype) == ("int32", "bool", "int32")


def test_prompt_is_the_head_of_the_answered_dialogue() -> None:
    tokenizer, dialogue = byte_level(), exchange("How many? <|im_end|>", "three")
    prompt = tokenize_prompt(tokenizer, CHATML, dialogue.messages[:1])
    result = tokenize_dialogue(tokenizer, CHATML, dialogue)
    assert prompt == result.token_ids[: int(np.argmax(result.is_target))].tolist()


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
