"""A model whose next token depends on its last one alone, as a table says: what it writes is known, and how probable it is."""

import math
from pathlib import Path

import torch
from tiny_models import CHATML, byte_level_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

WORDS = ["Blue", "Green", "Red", "7", "8"]
SPREAD = 20.0
"""Logit of a token whose probability is 1, above all others."""


def save_word_model(folder: Path, answers: dict[str, float], *, then: str = "<|im_end|>") -> Path:
    """A model under ChatML that answers every question with one of some words, then ends its turn.

    Args:
        answers: word of WORDS -> its share.
        then: what stands behind the word; a word that is among `answers` never ends.
    """
    tokenizer = byte_level_tokenizer(400, CHATML)
    tokenizer.add_tokens(WORDS)
    size = len(tokenizer)
    config = LlamaConfig(
        vocab_size=size, hidden_size=size + size % 2, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=512, tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    width = config.hidden_size
    logits = torch.zeros(size, width)
    before = tokenizer("<|im_start|>assistant\n", add_special_tokens=False).input_ids[-1]
    for word, share in answers.items():
        number = tokenizer.convert_tokens_to_ids(word)
        logits[number, before] = SPREAD + math.log(share)
        logits[tokenizer.convert_tokens_to_ids(then), number] = SPREAD
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size, width))
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.fill_(1.0)
        # A normalised one-hot vector is the root of its width there, and nothing else.
        model.lm_head.weight.copy_(logits / math.sqrt(width))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
