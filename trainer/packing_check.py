"""Whether a model keeps packed dialogues apart: the pivot in; nothing, or a refusal, out.

Position ids part the dialogues of a pack for attention. A convolution over the tokens or a recurrent state takes no notice of
them, and carries one dialogue into the next; so do models whose attention mask is made without them (in transformers 5.19
gpt-oss and Falcon). What a layer does is not told by its name, so it is tried: where the second of
two packed dialogues does not depend on the first, the gradient of its states after the first's embeddings is exactly 0 (a
masked weight is 0, in every dtype), and where anything leaks it is not.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fusechat.errors import ConfigError

TRIED_TOKENS = 16
"""Of each of the two dialogues; more than any causal convolution of a language model is wide."""


def check_packing(model: PreTrainedModel) -> None:
    """Refuse to pack dialogues for a model in which they would see each other.

    Runs where the model lies; weights that are on another process only (`meta`) are tried there. FlashAttention, which parts
    dialogues itself and needs a GPU, is replaced meanwhile.

    Raises:
        ConfigError: the second of two packed dialogues depends on the first.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    training, attention = model.training, str(model.config._attn_implementation)
    model.eval()
    if attention.startswith("flash_attention"):
        model.set_attn_implementation("eager")
    try:
        leak = _leak(model)
    finally:
        model.train(training)
        if attention.startswith("flash_attention"):
            model.set_attn_implementation(attention)
    if leak > 0:
        raise ConfigError(
            f"training.trl.packing: {type(model).__name__} carries one dialogue of a pack into the next, by a convolution, a "
            f"recurrent state or a mask without borders (gradient {leak:.2g}, expected 0); leave packing and padding_free out"
        )


def _leak(model: Any) -> float:
    """Largest gradient of the second dialogue's states after the first one's embeddings."""
    device = model.get_input_embeddings().weight.device
    last = min(model.get_input_embeddings().weight.shape[0], 2 + 2 * TRIED_TOKENS) - 1
    ids = (torch.arange(2 * TRIED_TOKENS, device=device) % last + 1)[None]
    positions = torch.arange(TRIED_TOKENS, device=device).repeat(2)[None]
    embedded: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hook = model.get_input_embeddings().register_forward_hook(keep)
    try:
        with torch.enable_grad():
            states = model.base_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
            second = states[0, TRIED_TOKENS:].float()
            # No plain sum: behind a norm it may not depend on anything.
            weights = torch.linspace(-1, 1, second.numel(), device=second.device).sin().reshape(second.shape)
            (gradient,) = torch.autograd.grad((second * weights).sum(), embedded[0])
    finally:
        hook.remove()
    return float(gradient[0, :TRIED_TOKENS].abs().max())
