"""Greedy answers beside a loop that reads everything anew for each token."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

from evaluation.answers import greedy_answers, is_exact, stop_ids, until_stop
from fusechat.storage.tokens import Tokens


@pytest.fixture(scope="module")
def network(tiny_models: dict[str, Path]) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny_models["llama"]).eval()


def obvious_answer(network: torch.nn.Module, prompt: list[int], stops: list[int], max_new_tokens: int) -> list[int]:
    ids = list(prompt)
    while len(ids) < len(prompt) + max_new_tokens:
        with torch.no_grad():
            token = network(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item()
        if token in stops:
            break
        ids.append(token)
    return ids[len(prompt) :]


def test_greedy_answers_in_batches_equal_the_obvious_ones(network: torch.nn.Module) -> None:
    generator = np.random.default_rng(0)
    prompts = [generator.integers(4, 300, size).tolist() for size in (3, 17, 8, 8, 30, 1)]
    free = [obvious_answer(network, prompt, [], 12) for prompt in prompts]
    stops = [free[0][4], free[1][7]]
    expected = [obvious_answer(network, prompt, stops, 12) for prompt in prompts]
    assert len(set(map(len, expected))) > 1, "some answers end early"
    # What the folder asks for must not matter.
    own = GenerationConfig(do_sample=True, temperature=5.0, repetition_penalty=3.0, max_new_tokens=2)
    network.generation_config = own
    counted: list[int] = []
    found = greedy_answers(
        network, prompts, stops=stops, max_new_tokens=12, batch_tokens=90, on_batch=counted.append
    )  # fmt: skip
    assert found == expected
    assert network.generation_config is own, "what generates next, such as the harness, is not cut at 12 tokens"
    assert sum(counted) == len(prompts) and len(counted) > 1


def test_greedy_answers_without_room_are_none(network: torch.nn.Module) -> None:
    prompts = [[5] * 509, [5, 6]]
    found = greedy_answers(network, prompts, stops=[], max_new_tokens=4, batch_tokens=64)
    assert found[0] is None and found[1] is not None and len(found[1]) == 4


def test_greedy_answers_to_nothing_are_nothing(network: torch.nn.Module) -> None:
    assert greedy_answers(network, [], stops=[], max_new_tokens=4, batch_tokens=64) == []


def test_stop_ids_are_the_networks_own_and_the_last_template_token_of_each_turn() -> None:
    ids = np.array([1, 50, 51, 7, 8, 1, 60, 8, 2], np.int32)
    is_scored = np.array([0, 0, 1, 1, 1, 0, 1, 1, 0], bool)
    spans = np.array([[-1, -1], [0, 2], [2, 4], [-1, -1], [-1, -1], [-1, -1], [4, 5], [-1, -1], [-1, -1]], np.int32)
    tokens = Tokens.of_contents(ids, is_scored, spans, np.array([0, 5, 9]), {})
    network = AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=99, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
    )
    network.generation_config = GenerationConfig(eos_token_id=[3, 4])
    assert stop_ids(network, tokens) == [3, 4, 8]
    network.generation_config = GenerationConfig(eos_token_id=None)
    assert stop_ids(network, tokens) == [8]


def test_until_stop_keeps_what_stands_before_the_first_stop() -> None:
    assert until_stop([4, 9, 5, 8], [8, 9]) == [4]
    assert until_stop([4, 5], [8]) == [4, 5]
    assert until_stop([8, 5], [8]) == []


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        (" Dovrari ruvi SEN.", "dovrari ruvi sen", True),
        ("dovrari ruvi sen", "Dovrari ruvi sen.", True),
        ("dovrari ruvi", "dovrari ruvi sen", False),
        ("dovrari ruvi sen!", "dovrari ruvi sen", False),
        ("", "sen", False),
        ("3.14", "3.14", True),
    ],
)
def test_is_exact_forgives_case_ends_and_one_full_stop(answer: str, reference: str, expected: bool) -> None:
    assert is_exact(answer, reference) is expected
