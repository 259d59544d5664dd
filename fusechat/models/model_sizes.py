"""How large a model is and what a token costs, from its config.json alone: no weights, no torch.

Counts the families of `FAMILIES` exactly (tests hold them to the parameters that transformers makes). A config of
another family is built without memory by transformers, which takes seconds, and counted there.
"""

from dataclasses import dataclass
from typing import Any

from ..config import ModelSection
from ..errors import ModelError, first_line
from .model_files import find_config

BYTES_OF_DTYPE = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0}
MAX_LAYERS, MAX_LENGTH = 10_000, 2**31
"""No model has more layers, and no size of it is larger."""
NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


@dataclass(frozen=True)
class Family:
    """What a model type has beyond attention, a gated MLP and two norms a layer."""

    qkv_bias: bool = False
    qk_norm: bool = False
    norms: int = 2
    """Per layer, of the hidden size."""
    tied: bool = False
    """Input and output embedding are one matrix unless the config says otherwise."""
    expert_size_key: str = ""
    """Key of an expert's inner size; empty: no Mixture of Experts."""
    shared_size_key: str = ""
    """Of an MLP that every token passes beside its experts, behind a gate of one column."""


FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "internlm2": Family(),
    "granite": Family(),
    "phi3": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=True),
    "gemma": Family(tied=True),
    "gemma2": Family(norms=4, tied=True),
    "gemma3_text": Family(norms=4, qk_norm=True, tied=True),
    "mixtral": Family(expert_size_key="intermediate_size"),
    "qwen2_moe": Family(
        qkv_bias=True, expert_size_key="moe_intermediate_size", shared_size_key="shared_expert_intermediate_size"
    ),
    "qwen3_moe": Family(qk_norm=True, expert_size_key="moe_intermediate_size"),
}  # fmt: skip
"""model_type -> how its parameters are laid out."""


@dataclass(frozen=True)
class ModelSize:
    """Sizes of one model; parameters are counts, not bytes."""

    model_type: str
    parameters: int
    active_parameters: int
    """That one token passes: of a Mixture of Experts, the experts it is sent to."""
    embedding_parameters: int
    """Of the input table, which is looked up and multiplies nothing."""
    head_parameters: int
    """Of the output matrix (also counted in `parameters`, once if it is the input table)."""
    tied: bool
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    bytes_per_weight: float

    @property
    def is_moe(self) -> bool:
        return self.active_parameters < self.parameters

    @property
    def weight_bytes(self) -> float:
        """Bytes of the weights as they are loaded."""
        return self.parameters * self.bytes_per_weight

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of the KV cache for one token, in 16 bits."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * 2

    def flops_per_token(self, context: float, *, head_share: float = 1.0) -> float:
        """Floating-point operations of one token's forward pass.

        Args:
            context: mean number of tokens that a token attends to.
            head_share: share of the tokens whose hidden state is multiplied with the head.
        """
        tables = self.embedding_parameters if self.tied else self.embedding_parameters + self.head_parameters
        attention = 4 * self.num_layers * self.num_heads * self.head_dim * context
        return 2 * (self.active_parameters - tables) + attention + 2 * self.head_parameters * head_share


def model_size(model: ModelSection) -> ModelSize:
    """Sizes of a pivot or source from its config.json (local folder or the hub's cache).

    Raises:
        ModelError: no config is at hand, or it cannot be understood; the message says what to do.
    """
    return size_of_config(find_config(model), name=model.name, dtype=model.engine.dtype, extra=model.engine.extra)


def size_of_config(
    values: dict[str, Any], *, name: str = "model", dtype: str = "auto", extra: dict[str, Any] | None = None
) -> ModelSize:
    """Sizes from the values of a config.json.

    Args:
        dtype: of the loaded weights; `auto`: what the config says.
        extra: further engine arguments; `quantization` counts.
    """
    text = {**values, **(values.get("text_config") or {})}
    _check_counts(text, name)
    model_type = str(text.get("model_type", "") or values.get("model_type", ""))
    width = _bytes_per_weight(values, dtype, extra or {})
    family = FAMILIES.get(model_type)
    if family is None or any(key not in text for key in NEEDED) or not text.get("num_key_value_heads"):
        return _counted_by_transformers(values, model_type, name, width)
    try:
        return _counted(text, family, model_type, width)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ModelError(
            f"{name}: config.json of model_type {model_type!r}: its sizes make no model ({first_line(error)[:300]}); correct them"
        ) from None


def _check_counts(text: dict[str, Any], name: str) -> None:
    """Raises ModelError for sizes that no model has; building one of a billion layers would never end."""
    for key in NEEDED:
        value = text.get(key)
        limit = MAX_LAYERS if key == "num_hidden_layers" else MAX_LENGTH
        if isinstance(value, int | float) and not 0 <= value <= limit:
            raise ModelError(
                f"{name}: config.json: {key} is {str(value)[:80]}, expected a whole number up to {limit:,}; correct it"
            )


def _counted(text: dict[str, Any], family: Family, model_type: str, width: float) -> ModelSize:
    hidden, layers, vocab = (int(text[key]) for key in ("hidden_size", "num_hidden_layers", "vocab_size"))
    heads, kv_heads = int(text["num_attention_heads"]), int(text["num_key_value_heads"])
    head_dim = int(text.get("head_dim") or hidden // heads)
    tied = bool(text.get("tie_word_embeddings", family.tied))
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    if family.qkv_bias or text.get("attention_bias"):
        attention += head_dim * (heads + 2 * kv_heads) + (0 if family.qkv_bias else hidden)
    if family.qk_norm:
        attention += 2 * head_dim
    always = attention + family.norms * hidden
    mlp = 3 * hidden * int(text["intermediate_size"])
    if text.get("mlp_bias"):
        mlp += 2 * int(text["intermediate_size"]) + hidden
    num_sparse = _sparse_layers(text, layers) if family.expert_size_key else 0
    experts = chosen = shared = expert = 0
    if num_sparse:
        experts, chosen = _num_experts(text), int(text["num_experts_per_tok"])
        expert = 3 * hidden * int(text[family.expert_size_key])
        shared = hidden * experts  # the router
        if family.shared_size_key:
            shared += 3 * hidden * int(text[family.shared_size_key]) + hidden
    common = layers * always + (layers - num_sparse) * mlp + num_sparse * shared + hidden
    tables = vocab * hidden * (1 if tied else 2)
    return ModelSize(
        model_type, common + num_sparse * experts * expert + tables, common + num_sparse * chosen * expert + tables,
        vocab * hidden, vocab * hidden, tied, layers, heads, kv_heads, head_dim, hidden, vocab, width,
    )  # fmt: skip


def _num_experts(text: dict[str, Any]) -> int:
    """Experts of a layer; transformers has called them by three names. 0: none."""
    keys = ("num_experts", "num_local_experts", "n_routed_experts")
    return next((int(text[key]) for key in keys if text.get(key)), 0)


def _sparse_layers(text: dict[str, Any], layers: int) -> int:
    """Layers whose MLP is a Mixture of Experts."""
    step, dense = int(text.get("decoder_sparse_step") or 1), set(text.get("mlp_only_layers") or [])
    return sum(1 for layer in range(layers) if layer not in dense and (layer + 1) % step == 0)


def _bytes_per_weight(values: dict[str, Any], dtype: str, extra: dict[str, Any]) -> float:
    quantization = values.get("quantization_config") or {}
    if extra.get("quantization") or quantization.get("quant_method"):
        return float(quantization.get("bits") or quantization.get("w_bit") or 8) / 8
    name = dtype if dtype != "auto" else values.get("dtype") or values.get("torch_dtype") or "bfloat16"
    return BYTES_OF_DTYPE.get(str(name).removeprefix("torch."), 2.0)


def _counted_by_transformers(values: dict[str, Any], model_type: str, name: str, width: float) -> ModelSize:
    """Any other architecture that transformers knows: built on the meta device, where nothing takes memory."""
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    rest = {
        key: value for key, value in values.items() if key not in ("model_type", "auto_map", "transformers_version")
    }
    try:
        config = AutoConfig.for_model(values["model_type"], **rest)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (
        LookupError,
        ValueError,
        AttributeError,
        TypeError,
        ArithmeticError,
        RuntimeError,
        StrictDataclassError,
    ) as error:
        raise ModelError(
            f"{name}: config.json of model_type {model_type!r} is of no architecture that the plan can count "
            f"({first_line(error)[:300]}); expected one of {', '.join(sorted(FAMILIES))} or one that transformers knows"
        ) from None
    text = config.get_text_config()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    experts = sum(value.numel() for key, value in model.named_parameters() if ".experts." in key)
    count = _num_experts(text.to_dict())
    idle = int(experts * (1 - text.num_experts_per_tok / count)) if experts and count else 0
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    heads = int(text.num_attention_heads)
    tied = bool(getattr(text, "tie_word_embeddings", False))
    return ModelSize(
        model_type, parameters, parameters - idle, table.weight.numel(),
        (head if head is not None else table).weight.numel(), tied, int(text.num_hidden_layers), heads,
        int(getattr(text, "num_key_value_heads", None) or heads),
        int(getattr(text, "head_dim", None) or text.hidden_size // heads), int(text.hidden_size), int(text.vocab_size), width,
    )  # fmt: skip
