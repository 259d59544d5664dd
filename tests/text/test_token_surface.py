"""Surfaces: the bytes each id spells, by hand for every kind of tokenizer, and against the tokenizers' own decoding."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fusechat.text.token_surface import token_surfaces, unknown_piece


def spelled(backend: Tokenizer) -> dict[str, bytes | None]:
    surfaces = token_surfaces(backend)
    return {backend.id_to_token(token_id): surfaces[token_id] for token_id in backend.get_vocab().values()}


def vocabulary(*pieces: str) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(pieces)}


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "a"), ("ä", "½")]
    backend = Tokenizer(models.BPE(vocabulary(*alphabet, "Ġa", "ä½", "<|tool|>", "日本"), merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>"])
    backend.add_tokens([AddedToken("<think>", special=False), AddedToken("\u00e9t\u00e9", special=False)])
    return backend


def sentencepiece(decoder: decoders.Decoder | None) -> Tokenizer:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Tokenizer(
        models.BPE(
            vocabulary("<unk>", *bytes_, "▁", "a", "▁a", "▁▁", "好"),
            [("▁", "a"), ("▁", "▁")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    if decoder is not None:
        backend.decoder = decoder
    backend.add_special_tokens(["</s>"])
    return backend


def test_byte_level_pieces_spell_their_bytes() -> None:
    surfaces = spelled(byte_level())
    assert surfaces["Ġ"] == b" " and surfaces["Ġa"] == b" a" and surfaces["Ċ"] == b"\n"
    assert surfaces["ä"] == b"\xe4" and surfaces["ä½"] == b"\xe4\xbd"
    assert sorted(surfaces[piece] for piece in pre_tokenizers.ByteLevel.alphabet()) == [bytes([b]) for b in range(256)]


def test_byte_level_added_tokens_spell_their_text_and_special_ones_nothing() -> None:
    surfaces = spelled(byte_level())
    assert surfaces["<s>"] is None
    assert surfaces["<think>"] == b"<think>" and surfaces["\u00e9t\u00e9"] == "\u00e9t\u00e9".encode()
    assert surfaces["日本"] == "日本".encode()  # a piece outside the alphabet


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        decoders.Metaspace(),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    ],
)
def test_sentencepiece_marks_are_spaces_and_byte_pieces_one_byte(decoder: decoders.Decoder | None) -> None:
    surfaces = spelled(sentencepiece(decoder))
    assert (
        surfaces["▁"] == b" "
        and surfaces["▁a"] == b" a"
        and surfaces["▁▁"] == b"  "
        and surfaces["好"] == "好".encode()
    )
    assert surfaces["<0xE4>"] == b"\xe4" and surfaces["<0x0A>"] == b"\n"
    assert surfaces["<unk>"] is None and surfaces["</s>"] is None


def test_mark_of_a_replacing_normalizer_is_a_space() -> None:
    backend = Tokenizer(models.BPE(vocabulary("▁", "a", "▁a", "_"), [("▁", "a")]))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    assert spelled(backend) == {"▁": b" ", "a": b"a", "▁a": b" a", "_": b"_"}


@pytest.mark.parametrize("byte_fallback", [True, False])
def test_unigram_byte_pieces_are_bytes_only_with_byte_fallback(byte_fallback: bool) -> None:
    pieces = [("<unk>", 0.0), ("▁a", -1.0), ("<0xE4>", -2.0)]
    backend = Tokenizer(models.Unigram(pieces, 0, byte_fallback))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    expected = b"\xe4" if byte_fallback else b"<0xE4>"
    assert spelled(backend) == {"<unk>": None, "▁a": b" a", "<0xE4>": expected}
    assert unknown_piece(backend) == "<unk>"


def test_wordpiece_starts_a_word_with_a_space() -> None:
    backend = Tokenizer(models.WordPiece(vocabulary("[UNK]", "play", "##ing", "#"), unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    assert spelled(backend) == {"[UNK]": None, "play": b" play", "##ing": b"ing", "#": b" #"}


def test_end_of_word_suffix_is_a_space() -> None:
    model = models.BPE(vocabulary("a", "b</w>", "ab</w>"), [("a", "b</w>")], end_of_word_suffix="</w>")
    backend = Tokenizer(model)
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    assert spelled(backend) == {"a": b"a", "b</w>": b"b ", "ab</w>": b"ab "}


def test_ids_without_a_piece_spell_nothing() -> None:
    backend = Tokenizer(models.BPE({"a": 0, "b": 4}, []))
    assert token_surfaces(backend) == [b"a", None, None, None, b"b"]


def test_transformers_tokenizer_and_its_backend_spell_the_same() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="<s>")
    assert token_surfaces(tokenizer) == token_surfaces(tokenizer.backend_tokenizer)
    assert len(token_surfaces(tokenizer)) == len(tokenizer)


BACKENDS = {"byte_level": byte_level(), "sentencepiece": sentencepiece(None)}


@pytest.mark.parametrize("kind", BACKENDS)
@settings(deadline=None, max_examples=100)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda text: "▁" not in text))
def test_surfaces_of_a_text_joined_are_the_text(kind: str, text: str) -> None:
    surfaces = token_surfaces(BACKENDS[kind])
    ids = BACKENDS[kind].encode(text, add_special_tokens=False).ids
    assert b"".join(surfaces[token_id] or b"?" for token_id in ids) == text.encode()
