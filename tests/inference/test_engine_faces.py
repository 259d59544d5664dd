"""An engine per test, on tiny models: every architecture, both captures, chunks, preemption, two ranks, death, answers.

Held against a plain transformers forward. The vocabulary sizes are those of the real models.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tiny_architectures
import torch
from engine_cases import (
    ENGINE,
    K,
    assert_chosen_match,
    assert_rows_match,
    forward,
    make_chosen,
    make_dialogues,
    open_engine,
)
from real_tokenizers import real_dialogues
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusechat.errors import ConfigError, EngineError, ModelError
from inference.engine.engine import Engine


@pytest.fixture(scope="module", autouse=True)
def no_compilation() -> Iterator[None]:
    """vLLM compiles one small function of its prompt logprobs, for a minute; eager gives the same numbers."""
    before, torch._dynamo.config.disable = torch._dynamo.config.disable, True
    yield
    torch._dynamo.config.disable = before


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Architecture -> model folder, built when first asked for."""
    base = tmp_path_factory.mktemp("architectures")

    class Folders(dict):
        def __missing__(self, name: str) -> Path:
            if name == "internlm2":
                self[name] = tiny_architectures.save_internlm2(base / name, self[tiny_architectures.INTERNLM2_TWIN])
            else:
                self[name] = tiny_architectures.save_architecture(base / name, name)
            return self[name]

    return Folders()


@pytest.mark.parametrize("name", [*tiny_architectures.ARCHITECTURES, "internlm2"])
def test_teacher_rows_of_each_architecture_equal_a_plain_forward(name: str, folders: dict[str, Path]) -> None:
    # transformers has no InternLM2; the folder holds the Llama's weights under other names.
    plain = folders[tiny_architectures.INTERNLM2_TWIN if name == "internlm2" else name]
    with open_engine(folders[name]) as engine:
        ids, marks = make_dialogues(engine.vocab_size)
        real_ids, real_marks = real_dialogues(name) or ([], [])  # text under the source's own tokenizer
        ids, marks = [*ids, *real_ids], [*marks, *real_marks]
        rows = engine.score(ids, marks)
        assert engine.info["dtype"] == engine.info["head_dtype"] == "float32"
    assert_rows_match(rows, forward(plain, ids, marks), ids, marks)
    assert all(np.isfinite(found.logsumexp).all() for found in rows)


def test_teacher_preemption_gives_each_row_once(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    preempted: list[str] = []
    original = Scheduler._preempt_request

    def count(self: Scheduler, request: Any, *args: Any, **options: Any) -> None:
        preempted.append(request.request_id)
        original(self, request, *args, **options)

    monkeypatch.setattr(Scheduler, "_preempt_request", count)
    # Room for little more than one dialogue, several admitted at once, prefills side by side in small pieces.
    extra = {
        "block_size": 32,
        "num_gpu_blocks_override": 12,
        "scheduler_reserve_full_isl": False,
        "long_prefill_token_threshold": 20,
    }
    with open_engine(folders["llama"], extra=extra) as engine:
        ids, marks = make_dialogues(engine.vocab_size, (250, 240, 230))
        rows = engine.score(ids, marks)
    assert preempted
    assert_rows_match(rows, forward(folders["llama"], ids, marks), ids, marks)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_prompt_logprobs_capture_equals_a_plain_forward(name: str, folders: dict[str, Path]) -> None:
    with open_engine(folders[name], "prompt_logprobs") as engine:
        ids, marks = make_dialogues(engine.vocab_size)
        rows = engine.score(ids, marks)
        engine.prefill(ids)
        with pytest.raises(ConfigError, match=r"set extraction\.capture: topk_pooler"):
            engine.score(ids, marks, make_chosen(engine.vocab_size, marks))
    assert_rows_match(rows, forward(folders[name], ids, marks), ids, marks)
    assert all(np.isnan(found.logsumexp).all() for found in rows)
    for found in rows:
        assert (np.diff(found.topk_logprobs, axis=1) <= 0).all()


def test_experts_on_two_ranks_equal_a_plain_forward(folders: dict[str, Path]) -> None:
    """By vLLM's own prompt logprobs; the pooler on two ranks is the next test's."""
    with open_engine(folders["mixtral"], "prompt_logprobs", tensor_parallel_size=2) as engine:
        ids, marks = make_dialogues(engine.vocab_size)
        rows = engine.score(ids, marks)
        assert engine.info["tensor_parallel_size"] == 2
    assert_rows_match(rows, forward(folders["mixtral"], ids, marks), ids, marks)


def test_teacher_on_two_ranks_equals_a_plain_forward_and_reports_the_death_of_one(folders: dict[str, Path]) -> None:
    with open_engine(folders["mistral"], tensor_parallel_size=2) as engine:  # the second rank's columns are padded
        ids, marks = make_dialogues(engine.vocab_size)
        rows = engine.score(ids, marks)
        engine.prefill(ids)
        expected = forward(folders["mistral"], ids, marks)
        assert_rows_match(rows, expected, ids, marks)
        chosen = make_chosen(engine.vocab_size, marks)  # of both ranks' parts of the vocabulary
        both = engine.score(ids, marks, chosen)
        assert_rows_match(both, expected, ids, marks)
        assert_chosen_match(both, expected, chosen)
        children = psutil.Process().children(recursive=True)
        ranks = [child for child in children if "Worker" in " ".join(child.cmdline())]
        assert len(ranks) == 2, [child.cmdline() for child in children]
        ranks[-1].kill()
        with pytest.raises(EngineError, match="the engine died"):
            for _ in range(1_000):
                engine.score(ids, marks)
        assert not engine.alive
        with pytest.raises(EngineError, match="the engine died"):
            engine.score(ids, marks)


def test_generate_greedy_equals_transformers_and_stops(folders: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["llama"], dtype=torch.float32).eval()
    prompts = make_dialogues(32_000, (5, 40))[0]
    expected = []
    for prompt in prompts:
        tokens = torch.from_numpy(prompt.astype(np.int64))[None]
        answer = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=8, do_sample=False)
        expected.append(answer[0, len(prompt) :].tolist())
    engine = Engine(str(folders["llama"]), max_tokens=100, face="generate", section=ENGINE)
    with engine:
        answers = engine.generate(prompts, max_new_tokens=8)
        assert [answer.tolist() for answer in answers] == expected
        stop = expected[0][3]
        (stopped,) = engine.generate(prompts[:1], max_new_tokens=8, stop_token_ids=[stop])
        assert stopped.tolist() == expected[0][: expected[0].index(stop)]
        warm = [engine.generate(prompts, max_new_tokens=8, temperature=2.0, seed=seed) for seed in (1, 1, 2)]
        assert [a.tolist() for a in warm[0]] == [a.tolist() for a in warm[1]] != [a.tolist() for a in warm[2]]
        with pytest.raises(ConfigError, match="temperature"):
            engine.generate(prompts, max_new_tokens=8, temperature=5.0)
        with pytest.raises(EngineError, match="refused"):
            engine.generate([np.zeros(101, np.int32)], max_new_tokens=8)
        assert engine.alive
    with pytest.raises(EngineError, match="closed"):
        engine.generate(prompts, max_new_tokens=1)


def test_text_ends_an_answer_and_further_settings_of_sampling_reach_the_engine(tiny_models: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["llama"])
    prompts = [np.array(tokenizer("The quick brown fox").input_ids, np.int32)]
    with Engine(str(tiny_models["llama"]), max_tokens=60, face="generate", reads_text=True, section=ENGINE) as engine:
        (whole,) = engine.generate(prompts, max_new_tokens=16)
        (stopped,) = engine.generate(prompts, max_new_tokens=16, stop=[tokenizer.decode(whole[:1]).strip()])
        assert len(whole) > 1 and stopped.tolist() == whole[:1].tolist()
        (narrow,) = engine.generate(prompts, max_new_tokens=16, temperature=2.0, sampling={"top_k": 1})
        assert narrow.tolist() == whole.tolist()
        for sampling in ({"top_p": 7.0}, {"num_beams": 4}):
            with pytest.raises(ConfigError, match=r"cannot sample so: .*(top_p|num_beams)"):
                engine.generate(prompts, max_new_tokens=16, sampling=sampling)


def test_teacher_half_precision_head_choice_is_recorded_and_close(folders: dict[str, Path]) -> None:
    with open_engine(folders["llama"], dtype="bfloat16", head_dtype="float32") as engine:
        ids, marks = make_dialogues(engine.vocab_size)
        rows = engine.score(ids, marks)
        assert (engine.info["dtype"], engine.info["head_dtype"]) == ("bfloat16", "float32")
    expected = forward(folders["llama"], ids, marks)
    for found, logprobs in zip(rows, expected, strict=True):
        difference = np.take_along_axis(logprobs, found.topk_ids, axis=1) - found.topk_logprobs
        assert math.sqrt((difference**2).mean()) < 0.1


def test_teacher_what_cannot_be_opened_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="its config cannot be read"):
        open_engine(tmp_path)
    with pytest.raises(ConfigError, match="enable_prefix_caching, which the engine decides itself"):
        open_engine(folders["llama"], extra={"enable_prefix_caching": True})
    with pytest.raises(ConfigError, match="bogus"):
        open_engine(folders["llama"], extra={"bogus": 1})
    with pytest.raises(ModelError, match="cannot open it"):
        Engine(str(folders["llama"]), k=K, max_tokens=100_000, section=ENGINE)
