"""Divergence from teachers: the obvious number on dense logits, and what a run reports of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_runs import evaluate, finish_earlier_stages, finish_measuring, finish_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from resealed import seal_again
from stages_here import align, write_report
from transformers import AutoModelForCausalLM

from evaluation.row_divergence import row_divergence
from fusechat.config import HeldOutSection, RunConfig, load_config
from fusechat.errors import ArtifactError
from fusechat.storage.contracts import RowKind
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens_reader import read_tokens


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
    found = row_divergence(
        logprobs, *chosen_of(torch.from_numpy(logits), np.where(np.isfinite(logprobs), ids, ids[:, :1]))
    )
    expected = [obvious(*row) for row in zip(logits.astype(np.float64), ids, logprobs.astype(np.float64), strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert (found > -1e-9).all()


def chosen_of(logits: torch.Tensor, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What an engine says of the ids: their logprobs, and that of all others; an id twice counts once."""
    logprobs, places = logits.log_softmax(1), torch.from_numpy(ids)
    rest = logprobs.scatter(1, places, -torch.inf).logsumexp(1)
    return logprobs.gather(1, places).numpy(), rest.numpy()


def test_row_divergence_of_a_networks_own_rows_is_nothing() -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    logprobs, ids = logits.log_softmax(1).topk(8, dim=1)
    assert abs(row_divergence(logprobs.numpy(), *chosen_of(logits, ids.numpy()))).max() < 1e-5


def test_row_divergence_of_rows_that_list_the_whole_vocabulary_has_no_tail() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    ids = np.tile(np.arange(5), (3, 1))
    logprobs = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).log_softmax(1).numpy()
    expected = (np.exp(logprobs) * (logprobs - logits.log_softmax(1).numpy())).sum(axis=1)
    np.testing.assert_allclose(row_divergence(logprobs, *chosen_of(logits, ids)), expected, rtol=1e-5)


@pytest.fixture
def ready(run_file: Path) -> RunConfig:
    config = load_config(run_file, ["evaluation.held_out.divergence_dialogues=9", "evaluation.exact.kinds=[]"])
    finish_earlier_stages(config)
    finish_rows(config)
    return config


def read_report(config: RunConfig) -> dict:
    return json.loads((config.report_path / "report.json").read_text(encoding="utf-8"))


def test_report_has_the_divergence_of_each_model_of_the_pivots_shape_from_each_teacher(ready: RunConfig) -> None:
    evaluate(ready)
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


def test_report_has_the_divergence_on_held_out_dialogues_from_rows_that_the_teachers_made_there(
    ready: RunConfig,
) -> None:
    """Rows of the source are laid on the pivot's tokens by the vocabularies that the training dialogues mapped."""
    finish_rows_for_real(ready)
    evaluate(ready)
    found = read_report(ready)
    assert found["divergence"]["held_out_teachers"] == ["llama", "mixtral"]
    numbers = found["divergence"]["held_out_numbers"]
    assert len(numbers) == found["divergence"]["held_out_dialogues"] == 9
    by_id = {model["id"]: model["held_out_divergence"] for model in found["models"]}
    assert by_id.pop("source.mixtral") == {}
    assert by_id["pivot"]["llama"]["nats_per_row"] < 1e-4, "the pivot from itself; rows are rounded when stored"
    places = {
        "llama": (ready.held_out_url("pivot"), "logprobs"),
        "mixtral": (ready.held_out_aligned_url("mixtral"), "aligned"),
    }
    for teacher, place in places.items():
        expected = obvious_divergence(ready, ready.fused_path, numbers, "held_out", *place)
        assert by_id["fused"][teacher]["nats_per_row"] == pytest.approx(expected, rel=1e-4)
    page = (ready.report_path / "index.html").read_text(encoding="utf-8")
    assert "Nats per row on held-out dialogues" in page


def finish_rows_for_real(config: RunConfig) -> None:
    """The source's aligned store as alignment makes it, over its random rows."""
    shutil.rmtree(config.aligned_url("mixtral"))
    align(config, "mixtral")


def obvious_divergence(
    config: RunConfig, folder: Path, numbers: list[int], split: str = "train", url: str = "", kind: str = "aligned"
) -> float:
    """Mean over the rows that say something, one dialogue and row at a time."""
    network = AutoModelForCausalLM.from_pretrained(folder)
    tokens = read_tokens(config.tokens_url("llama", split))
    store = RowStore.open(url or config.aligned_url("mixtral"), kind)
    found = []
    for number in numbers:
        where = tokens.tokens_of(number)
        with torch.no_grad():
            logits = network(torch.from_numpy(tokens.token_ids[where].astype(np.int64))[None]).logits[0].double()
        arrays = store.read_dialogue(number)
        for row, position in enumerate(np.flatnonzero(tokens.is_scored[where])):
            said = "kind" not in arrays or arrays["kind"][row] not in (RowKind.EMPTY, RowKind.ONE_HOT)
            if said and np.isfinite(arrays["topk_logprobs"][row]).any():
                ids, logprobs = arrays["topk_ids"][row].astype(int), arrays["topk_logprobs"][row].astype(np.float64)
                found.append(obvious(logits[position - 1].numpy(), ids, logprobs))
    return float(np.mean(found))


def test_teacher_without_finished_rows_is_named_in_a_note_and_left_out(ready: RunConfig) -> None:
    (Path(ready.aligned_url("mixtral")) / "artifact.json").unlink()
    evaluate(ready)
    found = read_report(ready)
    assert found["divergence"]["teachers"] == ["llama"]
    assert any("No finished rows of mixtral" in note for note in found["notes"])


def test_rows_of_other_tokens_are_refused(ready: RunConfig) -> None:
    path = Path(ready.aligned_url("mixtral")) / "artifact.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "parents": {"pivot_tokens": "another"}}))
    seal_again(path.parent)
    with pytest.raises(ArtifactError, match=r"aligned/mixtral: was made from other tokens"):
        finish_measuring(ready)


def test_other_rows_than_those_that_were_scored_are_refused(ready: RunConfig) -> None:
    finish_measuring(ready)
    path = Path(ready.aligned_url("mixtral")) / "artifact.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": "another"}))
    seal_again(path.parent)
    with pytest.raises(ArtifactError, match=r"chosen/pivot/train\.mixtral: is of other rows"):
        write_report(ready)


def test_divergence_that_is_not_asked_for_is_not_measured(ready: RunConfig) -> None:
    evaluation = ready.evaluation.model_copy(update={"held_out": HeldOutSection(divergence_dialogues=0)})
    evaluate(ready.model_copy(update={"evaluation": evaluation}))
    found = read_report(ready)
    assert found["divergence"] is None and all(model["divergence"] == {} for model in found["models"])
