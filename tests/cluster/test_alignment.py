"""Alignment on a real local Ray: the bytes of the run in one process, resumption, and what a broken shard leaves."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from alignment_runs import beside, name_other_dialogues, objects_of, prepared
from stages_here import align

from cluster import alignment as cluster_alignment
from cluster.pool.session import ray_session
from cluster.pool.worker_pool import WorkerPool
from fusechat.config import ClusterSection, RunConfig
from fusechat.errors import AlignmentError
from fusechat.storage import artifact
from fusechat.storage.damage import find_damage
from fusechat.storage.row_store import RowStore


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    with ray_session(ClusterSection(num_cpus=2)):
        yield


@pytest.fixture
def config(run_file: Path) -> RunConfig:
    return prepared(run_file, "extraction.shard_tokens=300")


def _on_cpus(config: RunConfig, num_cpus: int, **alignment: str) -> RunConfig:
    sections = {
        "cluster": ClusterSection(num_cpus=num_cpus),
        "alignment": config.alignment.model_copy(update=alignment),
    }
    return config.model_copy(update=sections)


def _count_pool_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the jobs that go to Ray."""
    names: list[str] = []
    run = WorkerPool.run
    monkeypatch.setattr(WorkerPool, "run", lambda pool, jobs: (names.extend(j.name for j in jobs), run(pool, jobs)))
    return names


@pytest.mark.parametrize("rules", [{}, {"token_rule": "released", "vocabulary_rule": "released"}])
def test_cluster_alignment_equals_the_run_in_one_process(config, tmp_path, monkeypatch, rules):
    names, source = _count_pool_runs(monkeypatch), config.sources[0].name
    alone = align(_on_cpus(config, 1, **rules), source)
    shared = cluster_alignment.run(_on_cpus(beside(config, tmp_path), 2, **rules), source)
    assert names == [f"count {source}", f"align {source}"]
    assert shared.counts == alone.counts and shared.url != alone.url
    assert objects_of(Path(shared.url)) == objects_of(Path(alone.url))


def test_cluster_alignment_goes_on_with_the_missing_shards_only(config, monkeypatch):
    source, config = config.sources[0].name, _on_cpus(config, 2)
    url = Path(align(config, source).url)
    objects, stamps = objects_of(url), {p: p.stat().st_mtime_ns for p in (url / "label_logprob" / "c").iterdir()}
    (url / "artifact.json").unlink()
    lost = [url / "label_logprob" / "c" / shard for shard in ("0", "2")]
    for path in lost:
        path.unlink()
    names = _count_pool_runs(monkeypatch)
    cluster_alignment.run(config, source)
    assert names == [f"align {source}"]
    assert objects_of(url) == objects
    assert {p for p, stamp in stamps.items() if p.stat().st_mtime_ns != stamp} == set(lost)


def test_cluster_alignment_of_one_cpu_or_one_shard_stays_here(config, monkeypatch):
    names, source = _count_pool_runs(monkeypatch), config.sources[0].name
    url = Path(cluster_alignment.run(_on_cpus(config, 1), source).url)
    (url / "artifact.json").unlink()
    (url / "label_logprob" / "c" / "1").unlink()
    cluster_alignment.run(_on_cpus(config, 2), source)
    assert names == [] and not find_damage(RowStore.open(str(url), "aligned"))


def test_cluster_alignment_of_damaged_rows_ends_with_the_shard_and_the_remedy(config):
    source, config = config.sources[0].name, _on_cpus(config, 2)
    rows = RowStore.open(config.logprobs_url(source), "logprobs")
    assert rows.layout.num_shards > 2
    damaged = Path(config.logprobs_url(source)) / "topk_ids" / "c" / "1" / "0"
    damaged.write_bytes(damaged.read_bytes()[:-20] + bytes(20))
    with pytest.raises(artifact.ArtifactError, match=r"shard 1: topk_ids is damaged .*--repair"):
        cluster_alignment.run(config, source)
    assert RowStore.open(config.aligned_url(source), "aligned").missing_shards()


def test_cluster_alignment_tokens_of_other_dialogues_are_refused(config):
    source = config.sources[0].name
    name_other_dialogues(config, source)
    with pytest.raises(AlignmentError, match="expected the same dialogues"):
        cluster_alignment.run(_on_cpus(config, 2), source)
