"""Real engines on tiny models: both captures against a plain transformers forward, per architecture, whole and in chunks.

One engine per test or module: a start costs some seconds. The vocabulary sizes are those of the real models.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tiny_architectures
import torch
from transformers import AutoModelForCausalLM

from fusechat.errors import ConfigError, ContractError, ModelError, TeacherError
from inference.rows import TopKRows
from inference.self_check import check_teacher
from inference.teacher import Teacher

K = 6
MAX_TOKENS = 300
CHUNK = 64
"""Tokens of one engine step: the longest dialogue takes four prefill chunks."""
ENGINE = {"max_num_batched_tokens": CHUNK, "kv_cache_gib": 0.05}
TOLERANCE = 1e-3
"""Nats, between two float32 implementations of one model."""


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
                self[name] = tiny_architectures.save_internlm2(base / name, self["llama"])
            else:
                self[name] = tiny_architectures.save_architecture(base / name, name)
            return self[name]

    return Folders()


def make_dialogues(vocab_size: int, lengths: tuple[int, ...] = (7, 250, 2, 90)) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Random ids; several separate runs of targets, some across chunk borders."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, vocab_size, length).astype(np.int32) for length in lengths]
    marks = [(np.arange(length) // 9) % 2 == 1 for length in lengths]
    for of_one in marks:
        of_one[-1] = True
    return ids, marks


def forward(folder: Path, ids: list[np.ndarray], marks: list[np.ndarray]) -> list[np.ndarray]:
    """float32 [rows, V] logprobs of a plain transformers forward, per dialogue."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [
            model(torch.from_numpy(of_one.astype(np.int64))[None]).logits[0][np.flatnonzero(targets) - 1].log_softmax(-1).numpy()
            for of_one, targets in zip(ids, marks, strict=True)
        ]


def assert_rows_match(rows: list[TopKRows], expected: list[np.ndarray], ids: list[np.ndarray], marks: list[np.ndarray]) -> None:
    for found, logprobs, of_one, targets in zip(rows, expected, ids, marks, strict=True):
        assert len(found) == targets.sum()
        best = np.sort(logprobs, axis=1)[:, ::-1][:, :K]
        np.testing.assert_allclose(found.topk_logprobs, best, atol=TOLERANCE)
        np.testing.assert_allclose(
            np.take_along_axis(logprobs, found.topk_ids, axis=1), found.topk_logprobs, atol=TOLERANCE
        )
        np.testing.assert_allclose(found.label_logprob, logprobs[np.arange(len(found)), of_one[targets]], atol=TOLERANCE)


def open_teacher(folder: Path, capture: str = "topk_pooler", **engine: object) -> Teacher:
    return Teacher(str(folder), k=K, capture=capture, max_tokens=MAX_TOKENS, engine={**ENGINE, **engine})


@pytest.mark.parametrize("name", [*tiny_architectures.ARCHITECTURES, "internlm2"])
def test_teacher_rows_of_each_architecture_equal_a_plain_forward(name: str, folders: dict[str, Path]) -> None:
    # transformers has no InternLM2; the folder holds the Llama's weights under other names.
    plain = folders["llama" if name == "internlm2" else name]
    with open_teacher(folders[name]) as teacher:
        ids, marks = make_dialogues(teacher.vocab_size)
        rows = teacher.score(ids, marks)
        assert teacher.info["dtype"] == teacher.info["head_dtype"] == "float32"
    assert_rows_match(rows, forward(plain, ids, marks), ids, marks)
    assert all(np.isfinite(found.logsumexp).all() for found in rows)


@pytest.fixture(scope="module")
def llama(folders: dict[str, Path]) -> Iterator[Teacher]:
    with open_teacher(folders["llama"]) as teacher:
        yield teacher


def test_score_dialogues_without_targets_give_no_rows_and_keep_their_place(llama: Teacher) -> None:
    ids, marks = make_dialogues(llama.vocab_size)
    empty = np.zeros(0, dtype=np.int32)
    rows = llama.score([ids[0], empty, ids[1], ids[3]], [marks[0], empty.astype(bool), np.zeros(250, bool), marks[3]])
    assert [len(found) for found in rows] == [marks[0].sum(), 0, 0, marks[3].sum()]
    np.testing.assert_array_equal(rows[3].topk_ids, llama.score([ids[3]], [marks[3]])[0].topk_ids)
    assert llama.score([], []) == []


def test_score_bad_dialogue_is_refused_and_the_engine_lives(llama: Teacher) -> None:
    ids, marks = make_dialogues(llama.vocab_size)
    first = np.array([True, False])
    with pytest.raises(ContractError, match="dialogue 1: token 0 is marked as a target"):
        llama.score([ids[0], ids[2]], [marks[0], first])
    with pytest.raises(ContractError, match="has 301 tokens, the teacher was opened for 300"):
        llama.score([np.zeros(301, np.int32)], [np.arange(301) > 0])
    assert llama.alive
    assert len(llama.score([ids[0]], [marks[0]])[0]) == marks[0].sum()


def test_score_from_two_threads_gives_each_its_own_rows(llama: Teacher) -> None:
    from concurrent.futures import ThreadPoolExecutor

    ids, marks = make_dialogues(llama.vocab_size)
    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(lambda i: llama.score([ids[i]] * 3, [marks[i]] * 3), [1, 3]))
    alone = [llama.score([ids[i]], [marks[i]])[0] for i in (1, 3)]
    for rows, expected in zip(both, alone, strict=True):
        for found in rows:
            np.testing.assert_allclose(found.label_logprob, expected.label_logprob, atol=TOLERANCE)


def test_score_again_gives_the_same_bits(llama: Teacher) -> None:
    ids, marks = make_dialogues(llama.vocab_size)
    first, second = llama.score(ids, marks), llama.score(ids, marks)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.topk_logprobs.view(np.int32), other.topk_logprobs.view(np.int32))


def test_prefill_runs_without_rows_and_generation_is_refused(llama: Teacher) -> None:
    ids, _ = make_dialogues(llama.vocab_size)
    llama.prefill(ids)
    with pytest.raises(ConfigError, match="opened with mode='score'"):
        llama.generate(ids, max_new_tokens=1)


def test_teacher_second_engine_in_one_process_is_refused(llama: Teacher, folders: dict[str, Path]) -> None:
    with pytest.raises(TeacherError, match="holds an engine already"):
        open_teacher(folders["llama"])


def test_check_teacher_on_its_own_model_passes(llama: Teacher, folders: dict[str, Path]) -> None:
    ids, marks = make_dialogues(llama.vocab_size)
    report = check_teacher(llama, ids, marks, model_folder=folders["llama"])
    assert report["reference"] == "transformers" and report["reference_max"] < TOLERANCE
    assert report["rows"] == sum(of_one.sum() for of_one in marks) and report["nan_count"] == 0


def test_check_teacher_against_another_checkpoint_is_refused(llama: Teacher, tmp_path: Path) -> None:
    ids, marks = make_dialogues(llama.vocab_size)
    other = tiny_architectures.save_architecture(tmp_path / "other", "llama", seed=1)
    with pytest.raises(TeacherError, match=r"disagree: found reference_mean .* nats, expected at most .*nothing is written"):
        check_teacher(llama, ids, marks, model_folder=other)


def test_teacher_preemption_gives_each_row_once(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    preempted: list[str] = []
    original = Scheduler._preempt_request

    def count(self: Scheduler, request: object, *args: object) -> None:
        preempted.append(request.request_id)  # type: ignore[attr-defined]
        original(self, request, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Scheduler, "_preempt_request", count)
    # Room for little more than one dialogue, and prefills that run side by side in small pieces.
    extra = {"num_gpu_blocks_override": 24, "long_prefill_token_threshold": 20, "block_size": 16}
    with open_teacher(folders["llama"], extra=extra) as teacher:
        ids, marks = make_dialogues(teacher.vocab_size, (250, 240, 230))
        rows = teacher.score(ids, marks)
    assert preempted
    assert_rows_match(rows, forward(folders["llama"], ids, marks), ids, marks)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_prompt_logprobs_capture_equals_a_plain_forward(name: str, folders: dict[str, Path]) -> None:
    with open_teacher(folders[name], "prompt_logprobs") as teacher:
        ids, marks = make_dialogues(teacher.vocab_size)
        rows = teacher.score(ids, marks)
        teacher.prefill(ids)
    assert_rows_match(rows, forward(folders[name], ids, marks), ids, marks)
    assert all(np.isnan(found.logsumexp).all() for found in rows)
    for found in rows:
        assert (np.diff(found.topk_logprobs, axis=1) <= 0).all()


@pytest.mark.parametrize(("name", "capture"), [("mixtral", "topk_pooler"), ("mistral", "topk_pooler"), ("mixtral", "prompt_logprobs")])
def test_teacher_on_two_ranks_equals_a_plain_forward(name: str, capture: str, folders: dict[str, Path]) -> None:
    with open_teacher(folders[name], capture, tensor_parallel_size=2) as teacher:
        ids, marks = make_dialogues(teacher.vocab_size)
        rows = teacher.score(ids, marks)
        teacher.prefill(ids)
        assert teacher.info["tensor_parallel_size"] == 2
    assert_rows_match(rows, forward(folders[name], ids, marks), ids, marks)


def test_teacher_death_of_a_rank_is_reported(folders: dict[str, Path]) -> None:
    teacher = open_teacher(folders["llama"], tensor_parallel_size=2)
    ids, marks = make_dialogues(teacher.vocab_size)
    teacher.score(ids, marks)
    ranks = [child for child in psutil.Process().children(recursive=True) if "Worker" in " ".join(child.cmdline())]
    assert ranks, [child.cmdline() for child in psutil.Process().children(recursive=True)]
    ranks[-1].kill()
    with pytest.raises(TeacherError, match="the engine died"):
        for _ in range(1_000):
            teacher.score(ids, marks)
    assert not teacher.alive
    with pytest.raises(TeacherError, match="the engine died"):
        teacher.score(ids, marks)
    teacher.close()


def test_generate_greedy_equals_transformers_and_stops(folders: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["llama"], dtype=torch.float32).eval()
    prompts = make_dialogues(32_000, (5, 40))[0]
    expected = []
    for prompt in prompts:
        tokens = torch.from_numpy(prompt.astype(np.int64))[None]
        answer = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=8, do_sample=False)
        expected.append(answer[0, len(prompt) :].tolist())
    teacher = Teacher(str(folders["llama"]), max_tokens=100, mode="generate", engine=ENGINE)
    with teacher:
        answers = teacher.generate(prompts, max_new_tokens=8)
        assert [answer.tolist() for answer in answers] == expected
        stop = expected[0][3]
        (stopped,) = teacher.generate(prompts[:1], max_new_tokens=8, stop_token_ids=[stop])
        assert stopped.tolist() == expected[0][: expected[0].index(stop)]
        warm = [teacher.generate(prompts, max_new_tokens=8, temperature=5.0, seed=seed) for seed in (1, 1, 2)]
        assert [a.tolist() for a in warm[0]] == [a.tolist() for a in warm[1]] != [a.tolist() for a in warm[2]]
        with pytest.raises(TeacherError, match="refused"):
            teacher.generate([np.zeros(101, np.int32)], max_new_tokens=8)
        assert teacher.alive
    with pytest.raises(TeacherError, match="closed"):
        teacher.generate(prompts, max_new_tokens=1)


def test_teacher_half_precision_head_choice_is_recorded_and_close(folders: dict[str, Path]) -> None:
    with open_teacher(folders["llama"], dtype="bfloat16", head_dtype="float32") as teacher:
        ids, marks = make_dialogues(teacher.vocab_size)
        rows = teacher.score(ids, marks)
        assert (teacher.info["dtype"], teacher.info["head_dtype"]) == ("bfloat16", "float32")
    expected = forward(folders["llama"], ids, marks)
    for found, logprobs in zip(rows, expected, strict=True):
        difference = np.take_along_axis(logprobs, found.topk_ids, axis=1) - found.topk_logprobs
        assert math.sqrt((difference**2).mean()) < 0.1


def test_teacher_what_cannot_be_opened_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="its config cannot be read"):
        open_teacher(tmp_path)
    with pytest.raises(ConfigError, match="enable_prefix_caching, which the teacher decides itself"):
        open_teacher(folders["llama"], extra={"enable_prefix_caching": True})
    with pytest.raises(ConfigError, match="bogus"):
        open_teacher(folders["llama"], extra={"bogus": 1})
    with pytest.raises(ModelError, match="cannot open it"):
        Teacher(str(folders["llama"]), k=K, max_tokens=100_000, engine=ENGINE)
