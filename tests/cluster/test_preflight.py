"""What is checked on a connected Ray before engines load. The Ray here claims two GPUs; no engine is started."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from paper_sources import paper_run

from cluster.pool.placement import num_workers, placement_of
from cluster.pool.preflight import check_cluster, check_gpus, check_reach
from cluster.pool.session import ray_session
from fusechat.config import ClusterSection, RunConfig
from fusechat.errors import ClusterSetupError
from fusechat.storage.work import Needs


@pytest.fixture(scope="module", autouse=True)
def ray_with_two_gpus() -> Iterator[None]:
    ray.init(
        address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False,
        object_store_memory=80 * 2**20,
    )  # fmt: skip
    yield
    ray.shutdown()


def paper_config(folder: Path, **cluster: int) -> RunConfig:
    return RunConfig.model_validate({**paper_run(folder), "cluster": cluster})


def test_engine_larger_than_the_cluster_says_what_is_missing_and_what_would_fit(tmp_path: Path) -> None:
    config = paper_config(tmp_path)
    with pytest.raises(ClusterSetupError) as refused:
        check_cluster(config, [config.model_named(name) for name in ("openchat", "qwen")], {})
    text = str(refused.value)
    assert "qwen: one engine needs 4 GPUs" in text and "2 on its largest node, 2 in all" in text
    assert "2 more, or tensor_parallel_size 2 on cards of at least 9" in text
    check_gpus(config, config.model_named("mixtral"))


def test_cluster_that_grows_is_counted_at_its_largest(tmp_path: Path) -> None:
    config = paper_config(tmp_path, max_gpus=8)
    check_gpus(config, config.model_named("qwen"))
    placement = placement_of(Needs(engine_ranks=config.model_named("qwen").engine.tensor_parallel_size), config.cluster)
    assert (placement.num_gpus, placement.backend) == (4, "mp")
    assert num_workers(placement, 100, max_gpus=config.cluster.max_gpus) == 2
    with pytest.raises(ClusterSetupError, match="8 in all"):
        wide = config.model_named("qwen").engine.model_copy(update={"tensor_parallel_size": 16})
        check_gpus(config, config.model_named("qwen").model_copy(update={"engine": wide}))


def test_engine_for_one_node_is_refused_where_only_all_nodes_together_are_so_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [{"Alive": True, "Resources": {"GPU": 2.0}}, {"Alive": True, "Resources": {"GPU": 2.0}}]
    monkeypatch.setattr("cluster.pool.preflight.ray.nodes", lambda: nodes)
    config = paper_config(tmp_path)
    with pytest.raises(ClusterSetupError, match="2 on its largest node, 4 in all"):
        check_gpus(config, config.model_named("qwen"))
    spread = paper_config(tmp_path, gpus_per_node=2)
    check_gpus(spread, spread.model_named("qwen"))


def test_place_that_workers_reach_passes_and_leaves_nothing(tmp_path: Path) -> None:
    check_reach("run.store", str(tmp_path / "store"))
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize("setting", ["run.store", "run.output"])
def test_place_that_only_the_driver_sees_is_refused_before_engines_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "of a cluster")
    place = "memory://rows"  # of this process alone
    with pytest.raises(
        ClusterSetupError, match=rf"memory://rows: out of reach for node .*driver wrote is not there.*set {setting}"
    ):
        check_cluster(paper_config(tmp_path), [], {setting: place})


def test_relative_results_are_refused_on_a_given_cluster_and_allowed_on_a_local_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = RunConfig.model_validate({**paper_run(tmp_path), "run": {"output": "runs/x"}})
    check_cluster(config, [], {})
    monkeypatch.setenv("RAY_ADDRESS", "of a cluster")
    with pytest.raises(ClusterSetupError, match=r"run\.output is 'runs/x', which is another folder for each worker"):
        check_cluster(config, [], {})


def test_no_ray_at_the_address_is_one_line_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    session = ray_session(ClusterSection(address="127.0.0.1:9"))
    with pytest.raises(ClusterSetupError, match=r"'127\.0\.0\.1:9': no Ray there .*expected HOST:6379"), session:
        pass


def test_no_ray_at_the_environments_address_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    session = ray_session(ClusterSection())
    with pytest.raises(ClusterSetupError, match=r"^RAY_ADDRESS of the environment '127\.0\.0\.1:9': no Ray there"):
        session.__enter__()
