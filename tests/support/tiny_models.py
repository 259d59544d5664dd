"""Tiny models and tokenizers, built on the spot: two tokenizers that cut text differently, two architectures."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = (
    "{{ bos_token }}{% for message in messages %}### {{ message['role'] }}:\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)

TRAINING_TEXT = [
    "The quick brown fox jumps over the lazy dog, and then sleeps for 12 hours.",
    "How many apples are 3 + 4? 3 + 4 = 7, so there are 7 apples.",
    "def add(a, b):\n    return a + b\n",
    "What colour is the sky? The sky is blue because air scatters blue light most.",
    "Hello! How are you today? I am fine, thank you. What can I do for you?",
]


def byte_level_tokenizer(vocab_size: int, template: str, text: list[str] | None = None) -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML's control tokens, bos and eos."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text or TRAINING_TEXT, trainer)
    eos = "<|im_end|>" if template == CHATML else "</s>"
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token=eos, pad_token="</s>")
    fast.chat_template = template
    return fast


def save_llama(folder: Path, *, vocab_size: int = 400, seed: int = 0, layers: int = 2) -> Path:
    """A two-layer Llama under ChatML."""
    tokenizer = byte_level_tokenizer(vocab_size, CHATML)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.1,
    )  # fmt: skip
    return _save(LlamaForCausalLM(config), tokenizer, folder)


def save_mixtral(folder: Path, *, vocab_size: int = 320, seed: int = 1) -> Path:
    """A two-layer Mixture of Experts with another tokenizer and a plain template."""
    tokenizer = byte_level_tokenizer(vocab_size, PLAIN, TRAINING_TEXT[::-2])
    torch.manual_seed(seed)
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.1,
    )  # fmt: skip
    return _save(MixtralForCausalLM(config), tokenizer, folder)


def _save(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    return folder
