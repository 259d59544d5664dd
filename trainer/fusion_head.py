"""Teaches a causal language model to return the fusion loss instead of logits.

`install(model, options)` gives `model(..., fusion={...})`: the backbone runs, the hidden states that predict a target
token are picked, and only those meet the lm_head. The loss is computed inside the forward, so that DDP, FSDP and
autocast see one ordinary call. Without `fusion` the model is as before.
"""

import functools
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .fused_loss import fused_linear_fusion_sums
from .head_product import HeadTransform
from .losses import LossOptions

_MULTIPLIERS = ("logit_scale", "output_multiplier", "lm_head_multiplier")
"""Names that model families gave to a factor on their logits."""


@dataclass
class FusionOutput(ModelOutput):
    """What a model returns with `fusion`: the fields of `fused_loss.FusionSums`, and the router loss of an MoE model."""

    loss: Tensor | None = None
    sft: Tensor | None = None
    fusion: Tensor | None = None
    correct: Tensor | None = None
    rows: Tensor | None = None
    row_entropy: Tensor | None = None
    label_losses: Tensor | None = None
    router_loss: Tensor | None = None


def install(model: PreTrainedModel, options: LossOptions) -> None:
    """Extend `model.forward` by the argument `fusion`; call it before the model is wrapped."""
    plain_forward = model.forward
    transform = head_transform(model.config)

    @functools.wraps(type(model).forward)
    def forward(self: PreTrainedModel, *args: Any, fusion: dict[str, Tensor] | None = None, **kwargs: Any) -> Any:
        if fusion is None:
            return plain_forward(*args, **kwargs)
        backbone = self.base_model(*args, **{**kwargs, "use_cache": False})
        hidden = backbone.last_hidden_state
        head: Any = self.get_output_embeddings()
        sums = fused_linear_fusion_sums(
            hidden.reshape(-1, hidden.shape[-1]).index_select(0, fusion["hidden_index"]),
            _whole(head.weight),
            fusion["labels"],
            fusion["topk_ids"],
            fusion["topk_logprobs"],
            options,
            row_weights=fusion.get("row_weights"),
            label_weights=fusion.get("label_weights"),
            scale=fusion["scale"],
            bias=_whole(getattr(head, "bias", None)),
            head=transform,
        )
        router_loss = _router_loss(self.config, backbone, kwargs.get("attention_mask"))
        return FusionOutput(**sums._asdict(), router_loss=router_loss)

    model.forward = types.MethodType(forward, model)


def head_transform(config: PretrainedConfig) -> HeadTransform:
    """What a model family does to its logits, read off its config."""
    text = config.get_text_config()
    scale = next((value for name in _MULTIPLIERS if (value := getattr(text, name, None)) is not None), None)
    divisor = getattr(text, "logits_scaling", None)
    if scale is None and divisor is not None:
        # Granite and MiniCPM divide by a field that HyperCLOVA X multiplies by.
        scale = divisor if text.model_type == "hyperclovax" else 1 / divisor
    return HeadTransform(1.0 if scale is None else float(scale), getattr(text, "final_logit_softcapping", None))


def _whole(parameter: Any) -> Any:
    """A parameter that FSDP2 left in pieces is gathered; its gradient goes back in pieces."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def _router_loss(config: PretrainedConfig, backbone: Any, attention_mask: Tensor | None) -> Tensor | None:
    """Load-balancing loss of an MoE model that returns its router logits, times its coefficient."""
    logits = getattr(backbone, "router_logits", None)
    text = config.get_text_config()
    coefficient = getattr(text, "router_aux_loss_coef", 0.0)
    if logits is None or not coefficient or not torch.is_grad_enabled():
        return None
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    experts = getattr(text, "num_experts", None) or text.num_local_experts
    balance: Any = load_balancing_loss_func(logits, experts, text.num_experts_per_tok, attention_mask)
    loss: Tensor = coefficient * balance
    return loss
