"""Tokenizing on a real local Ray by two workers: the bytes of the stage in one process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from token_runs import cut_small, files_of, tokenize_all

from cluster import tokenizing
from cluster.kept_ray import keep_ray
from cluster.pool.worker_pool import WorkerPool
from fusechat.config import ClusterSection, RunConfig, load_config
from fusechat.errors import DialogueError


@pytest.fixture(scope="module", autouse=True)
def kept_ray() -> Iterator[None]:
    with keep_ray():
        yield
    assert not ray.is_initialized(), "it ends with its block"


def on_cpus(run_file: Path, output: Path, num_cpus: int) -> RunConfig:
    config = load_config(run_file, [f"run.output={output}"])
    return config.model_copy(update={"cluster": ClusterSection(num_cpus=num_cpus)})


def test_tokens_are_the_same_whatever_the_number_of_workers(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_small(monkeypatch, 700)
    alone = tokenize_all(on_cpus(run_file, tmp_path / "alone", 1))
    names: list[str] = []
    run = WorkerPool.run
    monkeypatch.setattr(WorkerPool, "run", lambda pool, jobs: (names.extend(j.name for j in jobs), run(pool, jobs)))
    config = on_cpus(run_file, tmp_path / "ray", 2)
    shared = [tokenizing.read_dialogues(config)]
    address = ray.get_runtime_context().gcs_address
    shared += [one for model in config.models for one in tokenizing.tokenize(config, model.name)]
    assert address == ray.get_runtime_context().gcs_address, "one Ray does all works of a block"
    for one, other in zip(alone, shared, strict=True):
        assert files_of(one.url) == files_of(other.url) and one.counts == other.counts
    assert names.count("dialogues") == names.count("tokenize llama train") == names.count("join llama train") == 1


def test_mistake_in_a_file_ends_the_stage_with_its_line(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_small(monkeypatch, 700)
    config = on_cpus(run_file, tmp_path / "out", 2)
    file = tmp_path / "bad.jsonl"
    file.write_text(Path(config.dialogues.train[0]).read_text() + '{"id": "x", "messages": []}\n')
    config = config.model_copy(update={"dialogues": config.dialogues.model_copy(update={"train": [str(file)]})})
    with pytest.raises(DialogueError, match=r"bad.jsonl:15 \(dialogue 'x'\): the dialogue is empty"):
        tokenizing.read_dialogues(config)
