"""Nats of target tokens beside the obvious way: whole dialogues, one at a time, all logits in float64."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MixtralConfig,
    Qwen2Config,
)

from evaluation import held_out_loss
from evaluation.held_out_loss import dialogue_nats, length_batches
from fusechat.errors import ModelError
from fusechat.storage.tokens import Tokens

SMALL = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
CONFIGS = {
    "llama": lambda: LlamaConfig(**SMALL),
    "qwen2": lambda: Qwen2Config(**SMALL),
    "mixtral": lambda: MixtralConfig(**SMALL, num_local_experts=4, output_router_logits=True),
    "gemma2 with capped logits": lambda: Gemma2Config(**SMALL, head_dim=16, final_logit_softcapping=2.0),
    "granite with divided logits": lambda: GraniteConfig(**SMALL, logits_scaling=3.0),
    "cohere with multiplied logits": lambda: CohereConfig(**SMALL, logit_scale=0.25),
    "gpt2": lambda: GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3),
}


def tokens_of(lengths: list[int], seed: int = 0, vocab_size: int = 97) -> Tokens:
    """Random dialogues; about half of the tokens are targets, the first never is."""
    generator = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    is_scored = generator.random(offsets[-1]) < 0.5
    is_scored[offsets[:-1]] = False
    ids = generator.integers(0, vocab_size, offsets[-1]).astype(np.int32)
    return Tokens.of_contents(ids, is_scored, np.zeros((offsets[-1], 2), np.int32), offsets, {})


def obvious_nats(network: torch.nn.Module, tokens: Tokens) -> np.ndarray:
    """One dialogue at a time, all its logits at once."""
    found = []
    for dialogue in range(tokens.num_dialogues):
        part = tokens.tokens_of(dialogue)
        ids = torch.from_numpy(tokens.token_ids[part].astype(np.int64))
        with torch.no_grad():
            logprobs = network(input_ids=ids[None]).logits[0].double().log_softmax(-1)
        wanted = [t for t in range(1, len(ids)) if tokens.is_scored[part][t]]
        found.append(-sum(logprobs[t - 1, ids[t]].item() for t in wanted))
    return np.array(found)


def score(network: torch.nn.Module, tokens: Tokens, batch_tokens: int = 50) -> np.ndarray:
    ids = [f"d{number}" for number in range(tokens.num_dialogues)]
    return dialogue_nats(network, tokens, label="tiny", dialogue_ids=ids, batch_tokens=batch_tokens)


@pytest.mark.parametrize("name", CONFIGS)
def test_dialogue_nats_of_every_kind_of_head_equal_the_obvious_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out_loss, "LOGITS_PER_BLOCK", 97 * 5)  # five rows a block
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    tokens = tokens_of([17, 3, 40, 9, 9, 25, 1])
    np.testing.assert_allclose(score(network, tokens), obvious_nats(network, tokens), rtol=2e-5)
    assert "forward" not in network.base_model.__dict__, "the network is left as it was"


def test_dialogue_nats_of_a_dialogue_without_targets_is_zero() -> None:
    tokens = tokens_of([6, 8])
    tokens.is_scored[:6] = False
    nats = score(AutoModelForCausalLM.from_config(CONFIGS["llama"]()).eval(), tokens)
    assert nats[0] == 0 and nats[1] > 0


def test_dialogue_nats_longer_than_the_positions_are_left_out_and_others_kept() -> None:
    network = AutoModelForCausalLM.from_config(CONFIGS["gpt2"]()).eval()
    tokens = tokens_of([65, 64, 10])
    nats = score(network, tokens)
    assert np.isnan(nats).tolist() == [True, False, False]


def test_dialogue_nats_not_a_number_names_model_and_dialogue() -> None:
    network = AutoModelForCausalLM.from_config(CONFIGS["llama"]()).eval()
    tokens = tokens_of([12, 20, 8])
    bad_id = int(tokens.token_ids[tokens.tokens_of(1)][0])
    with torch.no_grad():
        network.get_input_embeddings().weight[bad_id] = torch.nan
    others = [int(i) for d in (0, 2) for i in tokens.token_ids[tokens.tokens_of(d)]]
    assert bad_id not in others
    with pytest.raises(ModelError, match=r"tiny: its loss of held-out dialogue 'd1' is nan.*float32"):
        score(network, tokens)


def test_length_batches_hold_every_dialogue_once_and_their_limit() -> None:
    lengths = np.random.default_rng(1).integers(1, 90, 200)
    chosen = np.arange(0, 200, 2)
    batches = list(length_batches(lengths, chosen, 100))
    assert sorted(np.concatenate(batches)) == chosen.tolist()
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= 100
    assert lengths[batches[0]].max() == lengths[chosen].max()


def test_length_batches_of_no_dialogue_are_none() -> None:
    assert list(length_batches(np.array([3, 4]), np.array([], dtype=np.int64), 100)) == []
