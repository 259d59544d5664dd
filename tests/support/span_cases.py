"""Tokenizers of every kind, texts that are hard to cut, and target rows of both, for alignment."""

from functools import lru_cache

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from scipy import sparse
from tiny_models import byte_level_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alignment import map_vocabulary
from alignment.rows.row_arrays import make_tables
from alignment.tokens.token_alignment import collect_target_rows
from alignment.vocabulary.piece_segmentation import encode_pieces, pivot_trie, segment_pieces
from alignment.vocabulary.vocabulary_trie import flatten_surfaces
from fusechat.text.dialogues import Dialogue, Message
from fusechat.text.token_surface import token_surfaces
from fusechat.text.tokenization import tokenize_dialogue

TEMPLATES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}",
)
ADVERSARIAL = [
    "e\u0301e\u0301 a\u030a", "\U0001f469\u200d\U0001f680 \U0001f680\U0001f680", "a\r\nb\rc\n\n\td ", "<|im_end|> </s> <s> [INST]",
    "x" * 3000, "1234567890 1000000", "\u200b\ufeff\u00a0", "\uac00\u0e33\u0b95\u0bcd", " lead", "\u2581\u0120##x",
]  # fmt: skip
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(lambda text: text.strip())
FEW_EXAMPLES = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """BPE with byte fallback and a word-start mark that stands before every text."""
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    pieces = ["<unk>", "<|im_start|>", "<|im_end|>", *(f"<0x{b:02X}>" for b in range(256)), *letters]
    merges = [
        ("\u2581", "a"),
        ("t", "h"),
        ("th", "e"),
        ("\u2581", "the"),
        ("1", "2"),
        ("12", "3"),
        ("l", "e"),
        ("\u2581", "l"),
    ]
    pieces += [left + right for left, right in merges]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return fast


def _lowercasing_words() -> PreTrainedTokenizerFast:
    """WordPiece that lowercases, strips accents and drops white space."""
    words = [
        "[UNK]",
        "<|im_start|>",
        "<|im_end|>",
        *"abcdefghijklmnopqrstuvwxyz",
        "the",
        *(f"##{c}" for c in "abcdefgh"),
        ":",
        ".",
    ]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return fast


def _compatible_forms() -> PreTrainedTokenizerFast:
    """Byte-level BPE over NFKC: one letter may come of several, several of one."""
    fast = byte_level_tokenizer(400, TEMPLATES[1])
    fast.backend_tokenizer.normalizer = normalizers.NFKC()
    return fast


@lru_cache
def tokenizers_of_every_kind() -> dict[str, PreTrainedTokenizerFast]:
    return {
        "bytes": byte_level_tokenizer(500, TEMPLATES[0]),
        "more_bytes": byte_level_tokenizer(330, TEMPLATES[1]),
        "marks": sentencepiece_like(),
        "words": _lowercasing_words(),
        "nfkc": _compatible_forms(),
    }


def target_rows(tokenizer, template, *contents):
    messages = [Message("user" if i % 2 == 0 else "assistant", content) for i, content in enumerate(contents)]
    tokens = tokenize_dialogue(tokenizer, template, Dialogue("d", tuple(messages)))
    return collect_target_rows(
        tokens.token_ids,
        tokens.is_scored,
        tokens.span,
        np.array([0, len(tokens.token_ids)]),
        tokens.field,
        np.ones(1, bool),
    )


def fake_rows(rng, source, vocab_size, k):
    """Rows in which the label has some probability."""
    ids = np.stack([rng.choice(vocab_size, k, replace=False) for _ in range(source.num_rows)]).astype(np.int32)
    ids[:, 0] = source.token_ids
    ids[:, 1:][ids[:, 1:] == source.token_ids[:, None]] = (source.token_ids.max(initial=0) + 1) % vocab_size
    probs = -np.sort(-rng.dirichlet(np.full(k + 1, 0.5), source.num_rows)[:, :k], axis=1)
    return {
        "topk_ids": ids,
        "topk_logprobs": np.log(np.maximum(probs, 1e-9)).astype(np.float32),
        "label_logprob": np.log(np.maximum(probs[:, 0], 1e-9)).astype(np.float32),
    }


@lru_cache
def tables_of(pivot_tokenizer, source_tokenizer):
    pivot, source = token_surfaces(pivot_tokenizer), token_surfaces(source_tokenizer)
    trie = pivot_trie(pivot, pivot_tokenizer, len(pivot))
    segments = segment_pieces(source, encode_pieces(source, pivot_tokenizer, pivot), trie, len(source))
    counts = sparse.csr_matrix((len(source), len(pivot)))
    images = map_vocabulary(counts, source, pivot)
    return make_tables(flatten_surfaces(source), flatten_surfaces(pivot), trie, segments, images)
