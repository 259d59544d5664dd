"""Tokenizing on a real local Ray: the bytes of the stage in one process, with one worker and with two."""

from pathlib import Path

import pytest
import ray
from token_runs import cut_small, files_of, tokenize_all

from cluster import tokenizing
from cluster.kept_ray import keep_ray
from cluster.pool.worker_pool import WorkerPool
from fusechat.config import ClusterSection, RunConfig, load_config
from fusechat.errors import DialogueError


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
    for workers in (1, 2):
        monkeypatch.setattr(tokenizing, "has_several_cpus", lambda section: True)
        config = on_cpus(run_file, tmp_path / f"ray{workers}", workers)
        with keep_ray():
            shared = [tokenizing.read_dialogues(config)]
            addresses = {ray.get_runtime_context().gcs_address}
            shared += [one for model in config.models for one in tokenizing.tokenize(config, model.name)]
            addresses.add(ray.get_runtime_context().gcs_address)
        assert len(addresses) == 1 and not ray.is_initialized(), "one Ray does all works of the block, and ends with it"
        for one, other in zip(alone, shared, strict=True):
            assert files_of(one.url) == files_of(other.url) and one.counts == other.counts
    assert names.count("dialogues") == 2 and names.count("tokenize llama train") == names.count("join llama train") == 2


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
