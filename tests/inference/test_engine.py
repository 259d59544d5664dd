"""One engine on a tiny Llama, shared by these tests: scoring, refusals, threads, the self-check."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiny_architectures
from engine_cases import (
    TOLERANCE,
    assert_chosen_match,
    assert_rows_match,
    forward,
    make_chosen,
    make_dialogues,
    open_engine,
)

from fusechat.errors import ConfigError, ContractError, EngineError
from inference.engine.engine import Engine
from inference.self_check import check_engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_architectures.save_architecture(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="module")
def llama(folder: Path) -> Iterator[Engine]:
    with open_engine(folder) as engine:
        yield engine


def test_score_dialogues_without_targets_give_no_rows_and_keep_their_place(llama: Engine) -> None:
    ids, marks = make_dialogues(llama.vocab_size)
    empty = np.zeros(0, dtype=np.int32)
    rows = llama.score([ids[0], empty, ids[1], ids[3]], [marks[0], empty.astype(bool), np.zeros(250, bool), marks[3]])
    assert [len(found) for found in rows] == [marks[0].sum(), 0, 0, marks[3].sum()]
    np.testing.assert_array_equal(rows[3].topk_ids, llama.score([ids[3]], [marks[3]])[0].topk_ids)
    assert llama.score([], []) == []


def test_score_bad_dialogue_is_refused_and_the_engine_lives(llama: Engine) -> None:
    ids, marks = make_dialogues(llama.vocab_size)
    first = np.array([True, False])
    with pytest.raises(ContractError, match="dialogue 1: token 0 is marked as a target"):
        llama.score([ids[0], ids[2]], [marks[0], first])
    with pytest.raises(ContractError, match="has 301 tokens, the engine was opened for 300"):
        llama.score([np.zeros(301, np.int32)], [np.arange(301) > 0])
    assert llama.alive
    assert len(llama.score([ids[0]], [marks[0]])[0]) == marks[0].sum()


def test_score_chosen_ids_equal_a_plain_forward_and_change_no_row(llama: Engine, folder: Path) -> None:
    ids, marks = make_dialogues(llama.vocab_size)
    chosen = make_chosen(llama.vocab_size, marks)
    chosen[1] = chosen[1][:, :1]  # as many as each dialogue likes
    rows, expected = llama.score(ids, marks, chosen), forward(folder, ids, marks)
    assert_rows_match(rows, expected, ids, marks)
    assert_chosen_match(rows, expected, chosen)
    labels = llama.score(ids, marks, [of_one[targets][:, None] for of_one, targets in zip(ids, marks, strict=True)])
    for found, plain in zip(labels, llama.score(ids, marks), strict=True):
        assert plain.chosen_logprobs is None and plain.rest_logprob is None
        np.testing.assert_allclose(found.chosen_logprobs[:, 0], found.label_logprob, atol=1e-6)


def test_score_chosen_ids_that_do_not_fit_are_refused_and_the_engine_lives(llama: Engine) -> None:
    ids, marks = make_dialogues(llama.vocab_size)
    chosen = make_chosen(llama.vocab_size, marks)
    chosen[1] = chosen[1][1:]
    with pytest.raises(ContractError, match=r"dialogue 1: chosen_ids are .*, expected whole numbers \[\d+, m\]"):
        llama.score(ids, marks, chosen)
    assert llama.alive


def test_score_from_two_threads_gives_each_its_own_rows(llama: Engine) -> None:
    ids, marks = make_dialogues(llama.vocab_size)
    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(lambda i: llama.score([ids[i]] * 3, [marks[i]] * 3), [1, 3]))
    alone = [llama.score([ids[i]], [marks[i]])[0] for i in (1, 3)]
    for rows, expected in zip(both, alone, strict=True):
        for found in rows:
            np.testing.assert_allclose(found.label_logprob, expected.label_logprob, atol=TOLERANCE)


def test_score_again_gives_the_same_bits(llama: Engine) -> None:
    ids, marks = make_dialogues(llama.vocab_size)
    first, second = llama.score(ids, marks), llama.score(ids, marks)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.topk_logprobs.view(np.int32), other.topk_logprobs.view(np.int32))


def test_prefill_runs_without_rows_and_generation_is_refused(llama: Engine) -> None:
    ids, _ = make_dialogues(llama.vocab_size)
    llama.prefill(ids)
    with pytest.raises(ConfigError, match="opened with face='score'"):
        llama.generate(ids, max_new_tokens=1)


def test_teacher_second_engine_in_one_process_is_refused(llama: Engine, folder: Path) -> None:
    with pytest.raises(EngineError, match="holds an engine already"):
        open_engine(folder)


def test_check_teacher_on_its_own_model_passes(llama: Engine, folder: Path) -> None:
    ids, marks = make_dialogues(llama.vocab_size)
    report = check_engine(llama, ids, marks, model_folder=folder)
    assert report["reference"] == "transformers" and report["reference_max"] < TOLERANCE
    assert report["rows"] == sum(of_one.sum() for of_one in marks) and report["nan_count"] == 0


def test_check_teacher_against_another_checkpoint_is_refused(llama: Engine, tmp_path: Path) -> None:
    ids, marks = make_dialogues(llama.vocab_size)
    other = tiny_architectures.save_architecture(tmp_path / "other", "llama", seed=1)
    with pytest.raises(
        EngineError, match=r"disagree: found reference_mean .* nats, expected at most .*nothing is written"
    ):
        check_engine(llama, ids, marks, model_folder=other)
