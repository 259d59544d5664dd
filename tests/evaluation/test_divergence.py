"""Divergence from teachers: the obvious number on dense logits, and what a run reports of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_runs import finish_earlier_stages, finish_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from evaluation import stage
from evaluation.row_divergence import row_divergence
from fusechat.config import HeldOutSection, RunConfig, load_config
from fusechat.errors import ArtifactError
from fusechat.storage.contracts import RowKind
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens import Tokens


def obvious(logits: np.ndarray, ids: np.ndarray, logprobs: np.ndarray) -> float:
    """KL over the listed ids and one bucket for the rest, by sums over the vocabulary."""
    q = np.exp(logits - logits.max())
    q /= q.sum()
    listed = np.isfinite(logprobs)
    p, ids = np.exp(logprobs[listed]), ids[listed]
    rest = 1 - p.sum()
    return float((p * np.log(p / q[ids])).sum() + rest * np.log(rest / np.delete(q, ids).sum()))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), k=st.integers(1, 6), padded=st.integers(0, 3))
def test_row_divergence_is_the_sum_over_listed_ids_and_tail(seed: int, k: int, padded: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (4, 30)).astype(np.float32)
    ids = np.stack([random.permutation(30)[: k + padded] for _ in range(4)])
    logprobs = np.full((4, k + padded), -np.inf, np.float32)
    logprobs[:, :k] = np.log(random.dirichlet(np.ones(k + 1), 4)[:, :k] * 0.98 + 0.001)
    found = row_divergence(torch.from_numpy(logits), torch.from_numpy(ids), torch.from_numpy(logprobs))
    expected = [obvious(*row) for row in zip(logits.astype(np.float64), ids, logprobs.astype(np.float64), strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert (found.numpy() > -1e-9).all()


def test_row_divergence_of_a_networks_own_rows_is_nothing() -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    logprobs, ids = logits.log_softmax(1).topk(8, dim=1)
    assert row_divergence(logits, ids, logprobs).abs().max() < 1e-5


@pytest.fixture
def ready(run_file: Path) -> RunConfig:
    config = load_config(run_file, ["evaluation.held_out.divergence_dialogues=9", "evaluation.exact.kinds=[]"])
    finish_earlier_stages(config)
    finish_rows(config)
    return config


def read_report(config: RunConfig) -> dict:
    return json.loads((config.report_path / "report.json").read_text(encoding="utf-8"))


def test_report_has_the_divergence_of_each_model_of_the_pivots_shape_from_each_teacher(ready: RunConfig) -> None:
    stage.run(ready)
    found = read_report(ready)
    assert found["divergence"]["teachers"] == ["llama", "mixtral"]
    assert (found["divergence"]["training_dialogues"], found["divergence"]["of"]) == (9, 14)
    by_id = {model["id"]: model["divergence"] for model in found["models"]}
    assert by_id.pop("source.mixtral") == {}
    for teachers in by_id.values():
        for entry in teachers.values():
            assert entry["dialogues"] >= 8 and entry["low"] < entry["nats_per_row"] < entry["high"]
    expected = obvious_divergence(ready, ready.fused_path, found["divergence"]["numbers"])
    assert by_id["fused"]["mixtral"]["nats_per_row"] == pytest.approx(expected, rel=1e-4)
    first = next(entry for entry in found["differences"] if (entry["model"], entry["against"]) == ("fused", "sft"))
    difference = by_id["fused"]["llama"]["nats_per_row"] - by_id["sft"]["llama"]["nats_per_row"]
    assert first["divergence"]["llama"]["difference"] == pytest.approx(difference)


def obvious_divergence(config: RunConfig, folder: Path, numbers: list[int]) -> float:
    """Mean over the rows that say something, one dialogue and row at a time."""
    network = AutoModelForCausalLM.from_pretrained(folder)
    tokens = Tokens.read(config.tokens_url("llama"))
    store = RowStore.open(config.aligned_url("mixtral"), "aligned")
    found = []
    for number in numbers:
        where = tokens.tokens_of(number)
        with torch.no_grad():
            logits = network(torch.from_numpy(tokens.token_ids[where].astype(np.int64))[None]).logits[0].double()
        arrays = store.read_dialogue(number)
        for row, position in enumerate(np.flatnonzero(tokens.is_scored[where])):
            if arrays["kind"][row] not in (RowKind.EMPTY, RowKind.ONE_HOT):
                ids, logprobs = arrays["topk_ids"][row].astype(int), arrays["topk_logprobs"][row].astype(np.float64)
                found.append(obvious(logits[position - 1].numpy(), ids, logprobs))
    return float(np.mean(found))


def test_teacher_without_finished_rows_is_named_in_a_note_and_left_out(ready: RunConfig) -> None:
    (Path(ready.aligned_url("mixtral")) / "artifact.json").unlink()
    stage.run(ready)
    found = read_report(ready)
    assert found["divergence"]["teachers"] == ["llama"]
    assert any("No finished rows of mixtral" in note for note in found["notes"])


def test_rows_of_other_tokens_are_refused(ready: RunConfig) -> None:
    path = Path(ready.aligned_url("mixtral")) / "artifact.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "parents": {"pivot_tokens": "another"}}))
    with pytest.raises(ArtifactError, match=r"aligned/mixtral: was made from other tokens"):
        stage.run(ready)


def test_divergence_that_is_not_asked_for_is_not_measured(ready: RunConfig) -> None:
    evaluation = ready.evaluation.model_copy(update={"held_out": HeldOutSection(divergence_dialogues=0)})
    stage.run(ready.model_copy(update={"evaluation": evaluation}))
    found = read_report(ready)
    assert found["divergence"] is None and all(model["divergence"] == {} for model in found["models"])
