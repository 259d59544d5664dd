"""Small tokenizers of every kind, trained on a few lines, and chat templates as Jinja and as the texts around the contents."""

import json
from collections.abc import Callable
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from fusechat.text.dialogues import Dialogue, Message

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


def exchange(user: str, assistant: str) -> Dialogue:
    return Dialogue("d", (Message("user", user), Message("assistant", assistant)))
