"""Answers: a network and prompts in, greedy answers out; and whether an answer is exactly the reference.

Knows nothing about dialogues' kinds, intervals or files.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from fusechat.storage.tokens import Tokens
from fusechat.text.exact_match import is_exact as is_exact  # part of this module's face

from .held_out_loss import length_batches, max_positions


def stop_ids(network: Any, tokens: Tokens) -> list[int]:
    """Ids that end an answer: the network's own end-of-sequence, and what ends an assistant's turn in the tokens artifact.

    A base model's own end-of-sequence is not what ends a turn under the template it was given here.
    """
    own = network.generation_config.eos_token_id
    own_ids = own if isinstance(own, list) else [own] if own is not None else []
    return sorted({*own_ids, *tokens.turn_end_ids()})


@torch.inference_mode()
def greedy_answers(
    network: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stops: list[int],
    max_new_tokens: int,
    batch_tokens: int,
    on_batch: Callable[[int], None] = lambda num_answers: None,
) -> list[list[int] | None]:
    """Answer each prompt with the most probable token at every step.

    Args:
        prompts: token ids, each with what the template puts before an answer.
        stops: ids that end an answer.
        batch_tokens: padded tokens of one batch, answers included.
        on_batch: told the number of answers of each batch when it is done.
    Returns:
        ids of each answer without the one that ended it; None for a prompt that leaves no room for an answer among the
        network's positions.
    """
    rows = network.get_input_embeddings().weight.shape[0]
    pad = next((stop for stop in stops if stop < rows), 0)  # masked, but looked up: a tokenizer may have more ids
    plain = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=stops or None, pad_token_id=pad
    )
    lengths = np.array([len(prompt) + max_new_tokens for prompt in prompts], dtype=np.int64)
    answers: list[list[int] | None] = [None] * len(prompts)
    for batch in length_batches(lengths, np.flatnonzero(lengths <= max_positions(network)), batch_tokens):
        ids, mask = left_padded([prompts[number] for number in batch], pad=pad)
        device = network.device
        with _generating_by(network, plain):
            output = network.generate(input_ids=ids.to(device), attention_mask=mask.to(device))[
                :, ids.shape[1] :
            ].tolist()
        for number, answer in zip(batch, output, strict=True):
            answers[number] = until_stop(answer, stops)
        on_batch(len(batch))
    return answers


@contextmanager
def _generating_by(network: Any, plain: GenerationConfig) -> Iterator[None]:
    """Plain greedy decoding: the model's folder may ask for sampling or a repetition penalty.

    A config that is only passed to `generate` takes from the network's own what it leaves open, the penalty among it. The
    network's own is put back: the harness generates with it next, and must not be cut at `max_new_tokens`.
    """
    own = network.generation_config
    network.generation_config = plain
    try:
        yield
    finally:
        network.generation_config = own


def left_padded(prompts: Sequence[Sequence[int]], *, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [batch, width] ids that all end at the right edge, and the mask of what is no padding."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def until_stop(answer: list[int], stops: Sequence[int]) -> list[int]:
    """The ids before the first that ends an answer."""
    ends = [place for place, token in enumerate(answer) if token in stops]
    return answer[: ends[0]] if ends else answer
