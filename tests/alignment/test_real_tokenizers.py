"""The sources' true tokenizers, as the tests use them: held against the packages' own code, ends of turn included."""

import numpy as np
import pytest
from real_tokenizers import DIALOGUES, TOKENIZERS, mistral, packaged, qwen, real_dialogues
from tiny_architectures import ARCHITECTURES

TEXTS = [
    "How many apples are 3 + 4?",
    "def add(a, b):\n    return a + b",
    "naïve 蓝色 \U0001f600",
    "it's  two   spaces",
]


@pytest.mark.parametrize("text", TEXTS)
def test_mistral_ids_are_those_of_its_sentencepiece_model(text: str) -> None:
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(packaged("mistral_common", "data/tokenizer.model.v1")))
    assert len(mistral()) == 32_000
    assert mistral()(text, add_special_tokens=False)["input_ids"] == pieces.encode(text)


@pytest.mark.parametrize("text", TEXTS)
def test_qwen_ids_are_those_of_its_byte_pair_ranks(text: str) -> None:
    import tiktoken
    from real_tokenizers import QWEN_WORDS
    from tiktoken.load import load_tiktoken_bpe

    ranks = load_tiktoken_bpe(str(packaged("dashscope", "resources/qwen.tiktoken")))
    plain = tiktoken.Encoding("qwen", pat_str=QWEN_WORDS, mergeable_ranks=ranks, special_tokens={})
    assert qwen()(text, add_special_tokens=False)["input_ids"] == plain.encode(text)


@pytest.mark.parametrize("architecture", TOKENIZERS)
def test_real_dialogues_end_their_turns_within_the_models_vocabulary(architecture: str) -> None:
    ids, marks = real_dialogues(architecture) or ([], [])
    end = {"mistral": 32_000, "mixtral": 2, "qwen2": qwen().convert_tokens_to_ids("<|im_end|>")}[architecture]
    assert len(ids) == len(DIALOGUES)
    for of_one, targets in zip(ids, marks, strict=True):
        assert of_one.max() < ARCHITECTURES[architecture][2]["vocab_size"]
        assert targets.any() and not targets[0] and end in of_one[targets]
    assert np.count_nonzero(ids[2] == end) >= 2
