"""The self-check's parts, on rows made by hand: what passes, and what each check refuses."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_architectures

from fusechat.errors import EngineError
from inference import self_check
from inference.capture.rows import TopKRows
from inference.self_check import beginning, check_engine, check_form, compare_rows, look_up, why_no_reference

VOCABULARY, K = 40, 5


def make_rows(ids: np.ndarray) -> tuple[TopKRows, np.ndarray]:
    """Rows of a fixed bigram table, and their labels."""
    table = np.random.default_rng(0).normal(size=(VOCABULARY, VOCABULARY)) * 2
    logits = table[ids[:-1]]
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    order = np.argsort(-logprobs, axis=1)[:, :K]
    label = logprobs[np.arange(len(logprobs)), ids[1:]].astype(np.float32)
    topk = np.take_along_axis(logprobs, order, axis=1).astype(np.float32)
    return TopKRows(order.astype(np.int32), topk, label, np.full_like(label, np.nan)), ids[1:]


def with_change(rows: TopKRows, name: str, where: object, value: object) -> TopKRows:
    changed = getattr(rows, name).copy()
    changed[where] = value
    return dataclasses.replace(rows, **{name: changed})


IDS = np.random.default_rng(1).integers(0, VOCABULARY, 60)


def test_check_form_sound_rows_pass_and_are_described() -> None:
    report = check_form(*make_rows(IDS), VOCABULARY, "t")
    assert report["rows"] == 59 and report["nan_count"] == 0
    assert 0 < report["mass_max"] < 1 and report["label_difference"] < 1e-6


@pytest.mark.parametrize(
    ("name", "where", "value", "message"),
    [
        ("topk_logprobs", (3, 2), np.nan, "found 1 NaN in 59 rows"),
        ("label_logprob", 7, np.nan, "found 1 NaN"),
        ("topk_ids", (0, 0), VOCABULARY, "outside the vocabulary of 40"),
        ("topk_ids", (0, 0), -1, "outside the vocabulary"),
        ("topk_ids", (5, slice(None)), 3, "an id twice in one row"),
        ("topk_logprobs", (4, 1), -20.0, "a row that does not descend"),
        ("topk_logprobs", (2, 0), 0.1, "a row with mass 1"),
        ("label_logprob", slice(None), -0.01, "a label that differs from its entry by"),
    ],
)
def test_check_form_broken_rows_are_refused(name: str, where: object, value: object, message: str) -> None:
    rows, labels = make_rows(IDS)
    with pytest.raises(EngineError, match=message):
        check_form(with_change(rows, name, where, value), labels, VOCABULARY, "t")


def test_check_form_rows_shifted_by_a_token_are_refused() -> None:
    rows, labels = make_rows(IDS)
    with pytest.raises(EngineError, match="a label that differs"):
        check_form(rows, np.roll(labels, 1), VOCABULARY, "t")


def test_look_up_gives_each_id_its_own_rows_value_or_the_smallest() -> None:
    rows, _ = make_rows(IDS)
    ids = np.random.default_rng(2).integers(0, VOCABULARY, (59, 7))
    expected = [
        [dict(zip(row, values, strict=True)).get(one, values[-1]) for one in wanted]
        for row, values, wanted in zip(rows.topk_ids, rows.topk_logprobs, ids, strict=True)
    ]
    np.testing.assert_array_equal(look_up(rows, ids), np.array(expected, dtype=np.float32))


def test_compare_rows_weighs_by_probability() -> None:
    half = np.log(np.float32(0.5))
    rows = TopKRows(np.array([[1, 2]]), np.array([[half, half]]), np.array([half]), np.array([np.nan]))
    mean, largest = compare_rows(rows, np.array([[half - 0.4, half]]), np.array([half + 0.3]))
    assert mean == pytest.approx(0.2) and largest == pytest.approx(0.4)


def test_beginning_cuts_behind_the_first_targets() -> None:
    ids, marks = np.arange(500), np.arange(500) >= 300
    cut_ids, cut_marks = beginning(ids, marks)
    assert len(cut_ids) == 300 + self_check.REFERENCE_TARGETS
    np.testing.assert_array_equal(cut_marks, marks[: len(cut_ids)])
    assert len(beginning(ids, np.zeros(500, bool))[0]) == 0


class TableTeacher:
    """Scores from the table; `drift` nats are added to a dialogue that shares its batch."""

    def __init__(self, drift: float) -> None:
        self.drift, self.k, self.vocab_size, self.model = drift, K, VOCABULARY, "table"
        self.info = {"dtype": "float32"}

    def score(self, token_ids: Sequence[np.ndarray], is_scored: Sequence[np.ndarray]) -> list[TopKRows]:
        rows = [make_rows(ids)[0] for ids in token_ids]
        if len(rows) > 1:
            rows = [dataclasses.replace(of_one, topk_logprobs=of_one.topk_logprobs - self.drift) for of_one in rows]
            rows = [dataclasses.replace(of_one, label_logprob=of_one.label_logprob - self.drift) for of_one in rows]
        return rows


@pytest.mark.parametrize("drift", [0.0, 0.1])
def test_check_teacher_rows_that_depend_on_their_batch_are_refused(drift: float) -> None:
    dialogues = [IDS, IDS[:20], IDS[5:40]]
    marks = [np.arange(len(ids)) > 0 for ids in dialogues]
    if drift:
        with pytest.raises(
            EngineError, match=r"depend on its batch: found company_mean 0\.0\d+ nats, expected at most 0\.001"
        ):
            check_engine(TableTeacher(drift), dialogues, marks)
    else:
        report = check_engine(TableTeacher(drift), dialogues, marks)
        assert report["company_max"] == 0 and report["reference"] == "not asked for"


def test_check_teacher_without_a_target_says_so() -> None:
    teacher = SimpleNamespace(info={"dtype": "float32"}, k=K, vocab_size=VOCABULARY, model="m")
    teacher.score = lambda ids, marks: [TopKRows.empty(K)]
    with pytest.raises(EngineError, match="found no target token"):
        check_engine(teacher, [IDS], [np.zeros(60, bool)])


def test_why_no_reference_names_what_is_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_architectures.save_architecture(tmp_path / "llama", "llama")
    assert why_no_reference(folder, 100) is None
    assert why_no_reference(None, 100) == "not asked for"
    assert "take the CPU too long" in why_no_reference(folder, 10**9)
    other = tiny_architectures.save_internlm2(tmp_path / "internlm2", folder)
    import inference.engine.internlm2

    inference.engine.internlm2.register_config()
    assert why_no_reference(other, 100) == "transformers has no internlm2"
    monkeypatch.setattr(self_check.psutil, "virtual_memory", lambda: SimpleNamespace(available=1_000))
    assert "do not fit in half of the free memory" in why_no_reference(folder, 100)
