"""A GGUF file goes in, a Hugging Face folder comes out: config, bf16 safetensors, fast tokenizer, chat template.

transformers opens these files itself, but keeps the weights packed and then refuses to save them, and gguf's own
reader needs half a minute for a vocabulary of 262,144 pieces. So the header is read here, the blocks are unpacked by
`gguf.dequantize`, and what llama.cpp's converter did to the weights is undone. Two architectures are known: `llama`
with a byte-level vocabulary, `gemma3` with a sentencepiece one. Knows nothing about where the bytes came from.
"""

import struct
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, MODEL_ARCH, GGMLQuantizationType, dequantize, get_tensor_name_map
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from fusechat.errors import ModelError

# Value types of the GGUF header (specification of the format, version 3): struct code by type number.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
CONTROL, USER_DEFINED = 3, 4  # token types of tokenizer.ggml.token_type
ARCHITECTURES = {"llama": MODEL_ARCH.LLAMA, "gemma3": MODEL_ARCH.GEMMA3}


class GGUFHeader:
    """`fields` (key -> value) and `tensors` (name -> (type, shape in torch order, first byte)) of a GGUF file."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 4
        version, num_tensors, num_fields = self._take("IQQ")
        if data[:4] != b"GGUF" or version != 3:
            raise ModelError(f"found {data[:4]!r} version {version}, expected a GGUF file of version 3")
        self.fields = {self._string(): self._value(self._take("I")[0]) for _ in range(num_fields)}
        entries = [self._tensor() for _ in range(num_tensors)]
        alignment = self.fields.get("general.alignment", 32)
        start = -(-self.position // alignment) * alignment
        self.tensors = {name: (kind, shape, start + offset) for name, kind, shape, offset in entries}

    def _take(self, code: str) -> tuple:
        values = struct.unpack_from(f"<{code}", self.data, self.position)
        self.position += struct.calcsize(f"<{code}")
        return values

    def _string(self) -> str:
        (length,) = self._take("Q")
        self.position += length
        return self.data[self.position - length : self.position].decode()

    def _value(self, kind: int):
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            item, count = self._take("IQ")
            return (
                [self._string() for _ in range(count)]
                if item == STRING
                else list(self._take(f"{count}{SCALARS[item]}"))
            )
        return self._take(SCALARS[kind])[0]

    def _tensor(self) -> tuple[str, GGMLQuantizationType, tuple[int, ...], int]:
        name = self._string()
        (num_axes,) = self._take("I")
        axes = self._take(f"{num_axes}Q")
        kind, offset = self._take("IQ")
        return name, GGMLQuantizationType(kind), tuple(reversed(axes)), offset

    def unpack(self, name: str) -> np.ndarray:
        """One tensor, float32, in torch's order of axes."""
        kind, shape, start = self.tensors[name]
        block, block_bytes = GGML_QUANT_SIZES[kind]
        num_bytes = int(np.prod(shape)) // block * block_bytes
        packed = np.frombuffer(self.data, dtype=np.uint8, count=num_bytes, offset=start)
        return dequantize(packed.reshape(*shape[:-1], -1), kind).reshape(shape)


def model_config(fields: dict) -> PretrainedConfig:
    """The transformers config that the header describes."""
    architecture = fields["general.architecture"]
    if architecture not in ARCHITECTURES:
        raise ModelError(f"found architecture {architecture!r}, expected one of {sorted(ARCHITECTURES)}")
    key = {name.removeprefix(f"{architecture}."): value for name, value in fields.items()}
    common = {
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": key["embedding_length"],
        "intermediate_size": key["feed_forward_length"],
        "num_hidden_layers": key["block_count"],
        "num_attention_heads": key["attention.head_count"],
        "num_key_value_heads": key["attention.head_count_kv"],
        "max_position_embeddings": key["context_length"],
        # Stored as float32: 1e-5 comes back as 9.99999974e-06.
        "rms_norm_eps": float(f"{key['attention.layer_norm_rms_epsilon']:.6g}"),
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    theta = key["rope.freq_base"]
    if architecture == "llama":
        rope = {"rope_type": "default", "rope_theta": theta}
        return LlamaConfig(**common, rope_parameters=rope, architectures=["LlamaForCausalLM"])
    # The header names neither the local theta nor the pattern; both belong to the architecture: five sliding
    # layers with theta 10,000, then one full layer with the theta of the header.
    layer_types = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(key["block_count"])]
    return Gemma3TextConfig(
        **common,
        head_dim=key["attention.key_length"],
        query_pre_attn_scalar=key["attention.key_length"],
        sliding_window=key["attention.sliding_window"],
        layer_types=layer_types,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        architectures=["Gemma3ForCausalLM"],
    )


def undo_rope_order(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Query or key weights `[heads * head_dim, hidden]` from llama.cpp's interleaved pairs to two halves a head."""
    pairs = weight.reshape(num_heads, weight.shape[0] // num_heads // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def model_weights(header: GGUFHeader, config: PretrainedConfig) -> dict[str, torch.Tensor]:
    """All weights in bf16 under transformers' names.

    Raises:
        ModelError: a tensor is missing, left over, or of another shape than the config asks for.
    """
    with torch.device("meta"):
        expected = AutoModelForCausalLM.from_config(config).state_dict()
    if config.tie_word_embeddings:
        del expected["lm_head.weight"]
    architecture = header.fields["general.architecture"]
    names = get_tensor_name_map(ARCHITECTURES[architecture], config.num_hidden_layers)
    weights = {}
    for name, wanted in expected.items():
        stored = f"{names.get_name(name.removesuffix('.weight'))}.weight"
        if stored not in header.tensors:
            raise ModelError(f"the GGUF file has no tensor {stored}, expected one for {name}")
        weight = header.unpack(stored)
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            weight = undo_rope_order(weight, heads)
        if architecture == "gemma3" and name.endswith("norm.weight"):
            weight = weight - 1  # stored as 1 + w; subtracted before rounding to bf16, which is coarse near 1
        if weight.shape != tuple(wanted.shape):
            raise ModelError(f"{stored} has shape {weight.shape}, expected {tuple(wanted.shape)} for {name}")
        weights[name] = torch.from_numpy(np.require(weight, requirements="CW")).to(torch.bfloat16)
    if len(weights) != len(header.tensors):
        raise ModelError(f"the GGUF file holds {len(header.tensors)} tensors, expected {len(weights)}")
    return weights


def byte_level_backend(fields: dict) -> Tokenizer:
    """SmolLM2's tokenizer: every digit alone, then GPT-2's split, then byte-level BPE."""
    vocab = {piece: index for index, piece in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def sentencepiece_backend(fields: dict) -> Tokenizer:
    """Gemma's tokenizer: BPE over characters with byte fallback, spaces written as U+2581, BOS in front.

    The file has no merges: a pair may merge if its concatenation is a piece, and pieces merge in their order.
    """
    types = fields["tokenizer.ggml.token_type"]
    pieces = [
        "\u2581" * len(piece) if types[index] == USER_DEFINED and not piece.strip(" ") else piece
        for index, piece in enumerate(fields["tokenizer.ggml.tokens"])
    ]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = []
    for piece in pieces:
        cuts = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        pairs = [pair for pair in cuts if pair[0] in vocab and pair[1] in vocab]
        merges += sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    unknown = pieces[fields["tokenizer.ggml.unknown_token_id"]]
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    bos = pieces[fields["tokenizer.ggml.bos_token_id"]]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocab[bos])]
    )
    return backend


def fast_tokenizer(fields: dict, *, model_max_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer with its special tokens and, where the file has one, its chat template."""
    kinds = {"gpt2": byte_level_backend, "llama": sentencepiece_backend}
    backend = kinds[fields["tokenizer.ggml.model"]](fields)
    pieces, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    backend.add_special_tokens([pieces[i] for i, kind in enumerate(types) if kind == CONTROL])
    # Matched whole before any merge: runs of newlines and tabs, HTML tags. Runs of spaces come out whole by merging.
    whole = [pieces[i] for i, kind in enumerate(types) if kind == USER_DEFINED and pieces[i].strip(" ")]
    backend.add_tokens([AddedToken(piece, normalized=False) for piece in whole])
    if backend.get_vocab_size() != len(pieces):
        raise ModelError(f"the tokenizer came out with {backend.get_vocab_size()} tokens, expected {len(pieces)}")
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
        **{name: pieces[fields[f"tokenizer.ggml.{key}_token_id"]] for name, key in names.items()},
    )
    tokenizer.chat_template = fields.get("tokenizer.chat_template")
    return tokenizer


def write_folder(data: bytes, out: Path) -> None:
    """Write a GGUF file's model into the existing, empty folder `out`."""
    header = GGUFHeader(data)
    config = model_config(header.fields)
    config.save_pretrained(out)
    GenerationConfig.from_model_config(config).save_pretrained(out)
    save_file(model_weights(header, config), out / "model.safetensors", metadata={"format": "pt"})
    fast_tokenizer(header.fields, model_max_length=config.max_position_embeddings).save_pretrained(out)
