"""Models of real shapes with random weights, made from their configs: nothing is downloaded.

In: a name of `SHAPES` and a size, `real` or `tiny` (for a dry run). Out: a model folder with a byte-level tokenizer. Where
only speed counts the folder holds no weights to speak of, and the engine draws them (`load_format: dummy`).
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.extraction_runs import PLAIN_TEMPLATE

# name -> model class, config class, real shape, tiny shape
SHAPES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "qwen2.5-7b": (
        "Qwen2ForCausalLM", "Qwen2Config",
        {"vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28,
         "num_attention_heads": 28, "num_key_value_heads": 4},
        {"vocab_size": 1024, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1},
    ),
    "mixtral-4b": (
        "MixtralForCausalLM", "MixtralConfig",
        {"vocab_size": 32_000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 16,
         "num_attention_heads": 16, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2},
        {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "llama-1.2b": (
        "LlamaForCausalLM", "LlamaConfig",
        {"vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
         "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True},
        {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
    # For equality: few layers, a real width and vocabulary, and weights that a plain forward can read.
    "dense": (
        "Qwen2ForCausalLM", "Qwen2Config",
        {"vocab_size": 152_064, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 4,
         "num_attention_heads": 14, "num_key_value_heads": 2, "initializer_range": 0.05},
        {"vocab_size": 1024, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "initializer_range": 0.1},
    ),
    "experts": (
        "MixtralForCausalLM", "MixtralConfig",
        {"vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 2,
         "num_attention_heads": 8, "num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2,
         "initializer_range": 0.1},
        {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2, "initializer_range": 0.1},
    ),
}  # fmt: skip
POSITIONS = 4096
CONTROL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def make_model(folder: Path, name: str, size: str, *, dtype: str = "bfloat16", weights: bool = False) -> Path:
    """A model folder of a shape; what stands there already is kept.

    Args:
        size: `real` or `tiny`.
        dtype: of the weights, as the config says it.
        weights: write random ones; else a file of one number stands in for them.
    """
    folder = folder / f"{name}.{size}.{dtype}"
    if (folder / "config.json").is_file():
        return folder
    model_class, config_class, real, tiny = SHAPES[name]
    shape = real if size == "real" else tiny
    config = getattr(transformers, config_class)(
        **shape, max_position_embeddings=POSITIONS, bos_token_id=256, eos_token_id=257, pad_token_id=258
    )
    config.architectures, config.dtype = [model_class], dtype
    _tokenizer().save_pretrained(folder)
    if weights:
        torch.manual_seed(0)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = getattr(transformers, model_class)(config)
        model.to(getattr(torch, dtype)).save_pretrained(folder)
    else:
        save_file({"none": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte under a plain template: dialogues get lengths that text has, whatever the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(CONTROL_TOKENS.values()))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **CONTROL_TOKENS)
    fast.chat_template = PLAIN_TEMPLATE.read_text(encoding="utf-8")
    return fast
