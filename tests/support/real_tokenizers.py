"""The tokenizers of four of the paper's six sources, from files that Python packages carry, under those models' templates.

`mistral_common` has Mistral's first sentencepiece model (Mixtral's; with two tokens more OpenChat's and Starling's),
`dashscope` Qwen's byte-pair ranks.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import SentencePieceExtractor, TikTokenConverter
from transformers.tokenization_utils_base import generate_merges

from fusechat.text.dialogues import Dialogue, Message
from fusechat.text.tokenization import tokenize_dialogue

OPENCHAT = (
    "{{ bos_token }}{% for m in messages %}{{ 'GPT4 Correct ' + m['role'].title() + ': ' + m['content'] + '<|end_of_turn|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}"
)
INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ ' [INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIALOGUES = [
    Dialogue("digits", (Message("user", "What is 48 + 175?"), Message("assistant", "48 + 175 = 223."))),
    Dialogue("scripts", (Message("user", "Say blue in Chinese."), Message("assistant", "蓝色 (lán sè) \U0001f600"))),
    Dialogue(
        "turns",
        (
            Message("user", "Write add."),
            Message("assistant", "```python\ndef add(a, b):\n    return a + b\n```"),
            Message("user", "Thanks!"),
            Message("assistant", "You're welcome."),
        ),
    ),
]


def packaged(package: str, file: str) -> Path:
    """A file of an installed package, which is not imported for it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    return Path(spec.origin).parent / file


@cache
def mistral(*added: str) -> PreTrainedTokenizerBase:
    pieces = SentencePieceExtractor(str(packaged("mistral_common", "data/tokenizer.model.v1"))).proto.pieces
    vocab = {piece.piece: number for number, piece in enumerate(pieces)}
    # Runs of spaces have low ids and low scores; scores decide.
    merges = generate_merges(vocab, {piece.piece: piece.score for piece in pieces})
    tokenizer = LlamaTokenizer(vocab=vocab, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": list(added)})
    return tokenizer


@cache
def qwen() -> PreTrainedTokenizerBase:
    ranks = packaged("dashscope", "resources/qwen.tiktoken")
    made = TikTokenConverter(str(ranks), pattern=QWEN_WORDS).converted()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = "<|im_end|>"
    return tokenizer


def real_dialogues(architecture: str) -> tuple[list[np.ndarray], list[np.ndarray]] | None:
    """Ids and target marks under the true tokenizer of a source of this architecture; None where no package has it."""
    if architecture not in TOKENIZERS:
        return None
    tokenizer, template = TOKENIZERS[architecture]
    parts = [tokenize_dialogue(tokenizer(), template, dialogue) for dialogue in DIALOGUES]
    return [part.token_ids for part in parts], [part.is_scored for part in parts]


TOKENIZERS = {
    "mistral": (lambda: mistral("<|end_of_turn|>", "<|pad_0|>"), OPENCHAT),
    "mixtral": (mistral, INSTRUCT),
    "qwen2": (qwen, CHATML),
}
"""Architecture -> (tokenizer, template)."""
