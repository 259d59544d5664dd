"""Extraction's driver on a Ray of several nodes, with teachers that hold no engine: nodes that die and join, full and
read-only targets, an S3 that fails, two drivers. After each fault the store equals one written without it.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import ray
from fault_runs import FailingS3, extract, extracting, held, store_of
from gated_teachers import SimulatedTeacher, contents, gate_of, gated, tries, wait_for
from ray.cluster_utils import Cluster
from stages_here import prepare_dialogues, tokenize
from tiny_runs import tiny_run

from cluster import extraction
from cluster.pool import extraction_meter, worker_pool
from cluster.pool.placement import placement_of
from fusechat.config import ClusterSection, RunConfig
from fusechat.errors import BusyError, ClusterError, StorageError
from fusechat.storage.damage import find_damage, repair
from fusechat.storage.row_store import RowStore
from fusechat.storage.work import Needs


@pytest.fixture(scope="module")
def s3() -> Iterator[FailingS3]:
    server = FailingS3()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server.server_port}", "AWS_MAX_ATTEMPTS": "1",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        yield server
        fsspec.filesystem("s3").clear_instance_cache()
    server.server.shutdown()


@pytest.fixture(scope="module")
def nodes(s3: FailingS3) -> Iterator[Cluster]:
    """A Ray whose first node only holds the driver; its nodes know the S3 server from their environment."""
    timing = {"metrics_report_interval_ms": 500, "health_check_timeout_ms": 60_000}
    head = {"num_cpus": 0, "object_store_memory": 80 * 2**20, "_system_config": timing}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def add_node(cluster: Cluster, **resources: Any) -> Any:
    return cluster.add_node(object_store_memory=80 * 2**20, **{"num_cpus": 2, **resources})


@pytest.fixture(scope="module")
def node(nodes: Cluster) -> Any:
    """One node with room for two engines."""
    return add_node(nodes)


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction.stage, "prepare", gated(SimulatedTeacher))
    monkeypatch.setattr(worker_pool, "SCALE_SECONDS", 0.3)


@pytest.fixture(scope="module")
def tokens(
    tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path], dialogue_files: dict[str, Path]
) -> tuple[Path, dict]:
    """(run folder with tokens, run file as values)."""
    folder = tmp_path_factory.mktemp("tokens") / "out"
    values = tiny_run(folder, tiny_models, dialogue_files)
    values["extraction"] = {"k": 5, "shard_tokens": 64, "self_check_dialogues": 0}
    values["cluster"] = {"max_attempts": 2}
    config = RunConfig.model_validate(values)
    prepare_dialogues(config)
    tokenize(config, "llama")
    return folder, values


@pytest.fixture
def make_run(tokens: tuple[Path, dict], tmp_path: Path) -> Callable[..., RunConfig]:
    def make(name: str = "out", store: str | None = None, **cluster_fields: Any) -> RunConfig:
        folder, values = tokens
        shutil.copytree(folder, tmp_path / name)
        section = {**values["cluster"], **cluster_fields}
        run = {"output": str(tmp_path / name), "store": store}
        if store is not None and "://" not in store:
            shutil.copytree(folder / "tokens", Path(store) / "tokens", dirs_exist_ok=True)
        return RunConfig.model_validate({**values, "run": run, "cluster": section})

    return make


@pytest.fixture(scope="module")
def whole(node: Any, tokens: tuple[Path, dict], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The store of a run without a fault."""
    base = tmp_path_factory.mktemp("whole")
    shutil.copytree(tokens[0], base / "out")
    config = RunConfig.model_validate({**tokens[1], "run": {"output": str(base / "out")}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction.stage, "prepare", gated(SimulatedTeacher))
        extract(config)
    assert set(tries(config).values()) == {1} and len(tries(config)) > 7
    return contents(base / "out" / "logprobs" / "llama")


def node_of(config: RunConfig, shard: int) -> str:
    """Where the shard was first begun."""
    return (gate_of(config) / f"tried.{shard}").read_text().split()[1]


def test_death_of_a_node_costs_no_more_than_its_shards_in_flight(
    nodes: Cluster, node: Any, make_run: Callable[..., RunConfig], whole: dict[str, bytes]
) -> None:
    config, doomed = make_run(), add_node(nodes)
    with extracting(config, hold=list(range(20))) as release:
        wait_for(lambda: len(held(config)) == 4)  # four engines on two nodes
        nodes.remove_node(doomed, allow_graceful=False)
        for path in gate_of(config).glob("start.*"):  # its actors outlive its daemon for a moment
            if path.read_text() == doomed.node_id:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(path.suffix[1:]), signal.SIGKILL)
        release()
    assert store_of(config) == whole
    lost = {shard for shard in tries(config) if node_of(config, shard) == doomed.node_id}
    again = {shard for shard, count in tries(config).items() if count > 1}
    assert again == lost and 2 <= len(lost) <= 4
    print(f"node death: {len(again)} of {len(tries(config))} shards done again")


def test_node_that_joins_late_gets_engines(
    nodes: Cluster, node: Any, make_run: Callable[..., RunConfig], whole: dict[str, bytes]
) -> None:
    config = make_run()
    with extracting(config, hold=list(range(20))) as release:
        wait_for(lambda: len(held(config)) == 2)
        late = add_node(nodes)
        wait_for(lambda: len(held(config)) == 4)
        release()
    assert store_of(config) == whole and set(tries(config).values()) == {1}
    assert sum(path.read_text() == late.node_id for path in gate_of(config).glob("start.*")) == 2
    nodes.remove_node(late)


def test_engine_wider_than_a_node_is_spread_over_nodes(nodes: Cluster) -> None:
    pair = [add_node(nodes, num_gpus=2) for _ in range(2)]
    placement = placement_of(Needs(engine_ranks=4), ClusterSection(gpus_per_node=2))
    group = placement.reserve()
    assert placement.place().executor_backend == "ray"
    assert group is not None and group.wait(60)
    bundles = ray.util.placement_group_table(group)["bundles_to_node_id"]
    assert set(bundles.values()) == {one.node_id for one in pair}
    ray.util.remove_placement_group(group)
    within = placement_of(Needs(engine_ranks=2), ClusterSection(gpus_per_node=2))
    assert within.reserve() is None and within.actor_options(None)["num_gpus"] == 2
    for one in pair:
        nodes.remove_node(one)


def test_shard_with_nan_is_set_aside_named_and_done_by_the_next_run(
    node: Any, make_run: Callable[..., RunConfig], whole: dict[str, bytes]
) -> None:
    config = make_run()
    (gate_of(config) / "nan.3").touch()
    with pytest.raises(ClusterError, match=r"(?s)set aside.*llama, shard 3: .*NaN") as error:
        extract(config)
    assert error.value.exit_status == 1
    assert {shard: count for shard, count in tries(config).items() if count > 1} == {3: 2}
    (gate_of(config) / "nan.3").unlink()
    extract(config)
    assert store_of(config) == whole
    assert tries(config) == {shard: 3 if shard == 3 else 1 for shard in tries(config)}


def test_damaged_object_costs_its_shard_and_no_other(
    node: Any, make_run: Callable[..., RunConfig], whole: dict[str, bytes]
) -> None:
    config = make_run()
    extract(config)
    victim = Path(config.logprobs_url("llama")) / "topk_ids" / "c" / "2" / "0"
    data = bytearray(victim.read_bytes())
    data[9] ^= 4
    victim.write_bytes(bytes(data))
    store = RowStore.open(config.logprobs_url("llama"), "logprobs")
    assert repair(store, find_damage(store)) == [2]
    extract(config)
    assert store_of(config) == whole
    assert {shard for shard, count in tries(config).items() if count > 1} == {2}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 400 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small filesystem takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_ends_the_run_at_once_and_the_next_one_goes_on(
    node: Any, make_run: Callable[..., RunConfig], whole: dict[str, bytes], small_disk: Path
) -> None:
    config = make_run(store=str(small_disk))
    fill = small_disk / "filler"
    full = pytest.raises(StorageError, match=r"No space left.*start the same command again")
    with full as error, extracting(config, hold=list(range(2, 20))) as release:
        wait_for(lambda: len(held(config)) >= 2)
        with contextlib.suppress(OSError), fill.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 512)
        release()
    assert error.value.exit_status == 2
    begun = tries(config)
    assert max(begun.values()) == 1 and len(begun) < 8  # nothing is scored for a store that cannot take it
    fill.unlink()
    extract(config)
    assert store_of(config) == whole


def test_read_only_disk_ends_the_run_at_once_and_the_next_one_goes_on(
    node: Any, make_run: Callable[..., RunConfig], whole: dict[str, bytes], small_disk: Path
) -> None:
    config = make_run(store=str(small_disk))

    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(small_disk)], check=True)

    with pytest.raises(StorageError, match="Read-only"), extracting(config, hold=list(range(2, 20))) as release:
        wait_for(lambda: len(held(config)) >= 2)
        remount("ro")
        release()
    with pytest.raises(StorageError, match="Read-only"):
        extract(config)
    remount("rw")
    extract(config)
    assert store_of(config) == whole


def test_s3_that_answers_500_for_a_while_costs_no_shard(
    node: Any, make_run: Callable[..., RunConfig], whole: dict[str, bytes], s3: FailingS3
) -> None:
    filesystem = fsspec.filesystem("s3")
    filesystem.mkdir("faulty")
    config = make_run(store="s3://faulty/run")
    filesystem.put(str(config.run.output / "tokens"), "faulty/run/tokens", recursive=True)
    with extracting(config, hold=list(range(2, 20))) as release:
        wait_for(lambda: len(held(config)) >= 2)
        s3.failing = True
        release()
        wait_for(lambda: s3.failed >= 12)
        time.sleep(2)
        s3.failing = False
    assert set(tries(config).values()) == {1}
    filesystem.invalidate_cache()
    base = "faulty/run/logprobs/llama"
    names = [path for path in filesystem.find(base) if not path.endswith(("artifact.json", "plan.json"))]
    assert {path.removeprefix(f"{base}/"): filesystem.cat(path) for path in names} == whole


def test_s3_that_stays_away_ends_the_run_with_one_line(
    node: Any, make_run: Callable[..., RunConfig], whole: dict[str, bytes], s3: FailingS3
) -> None:
    fsspec.filesystem("s3").mkdir("away")
    config = make_run(store="s3://away/run", storage_patience_seconds=0)
    fsspec.filesystem("s3").put(str(config.run.output / "tokens"), "away/run/tokens", recursive=True)
    try:
        with (
            pytest.raises(StorageError, match="does not answer"),
            extracting(config, hold=list(range(2, 20))) as release,
        ):
            wait_for(lambda: len(held(config)) >= 2)
            s3.failing = True
            release()
    finally:
        s3.failing = False


def test_second_driver_with_another_run_folder_is_refused(
    node: Any, make_run: Callable[..., RunConfig], whole: dict[str, bytes], tmp_path: Path
) -> None:
    store = str(tmp_path / "shared")
    first, second = make_run("one", store), make_run("two", store)
    with extracting(first, hold=[4]):
        wait_for(lambda: held(first))
        with pytest.raises(BusyError, match="is writing this store"):
            extract(second)
        assert not tries(second)
    assert store_of(first) == whole
    assert extract(second).counts["shards"] == len(tries(first)) and not tries(second)


def test_two_drivers_at_once_leave_the_same_bytes(
    nodes: Cluster, node: Any, make_run: Callable[..., RunConfig], whole: dict[str, bytes], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What a lease is spared: both write every shard."""
    monkeypatch.setattr(extraction, "hold_stores", lambda urls, if_changed: contextlib.nullcontext(lambda: None))
    more, store = add_node(nodes), str(tmp_path / "shared")
    first, second = make_run("one", store, engines=2), make_run("two", store, engines=2)
    with extracting(first, hold=list(range(20))) as release, extracting(second, hold=list(range(20))):
        wait_for(lambda: len(held(first)) == 2 and len(held(second)) == 2)
        release()
    assert store_of(first) == whole
    assert len(tries(second)) == len(tries(first))
    nodes.remove_node(more)


def test_counts_stand_in_ray_metrics_and_in_the_log(
    node: Any, make_run: Callable[..., RunConfig], whole: dict[str, bytes]
) -> None:
    config = make_run("metrics")
    (gate_of(config) / "nan.1").touch()
    with pytest.raises(ClusterError):
        extract(config)
    lines = fusechat_lines(config)
    done = [line for line in lines if line["event"] == "done"]
    assert [line["event"] for line in lines if line["shard"] == 1] == ["retried", "set_aside"]
    assert sorted(line["shard"] for line in done) == sorted(tries(config).keys() - {1})
    ports = [one["MetricsExportPort"] for one in ray.nodes() if one["Alive"]]

    names = [*extraction_meter.COUNTERS, *extraction_meter.GAUGES]

    def published() -> set[str]:
        """Names of the metrics that stand on the nodes' pages, of this teacher."""
        text = ""
        for port in ports:
            with contextlib.suppress(OSError):
                text += urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        lines = [line for line in text.splitlines() if 'teacher="llama"' in line]
        return {name for name in names if any(re.match(rf"ray_fusechat_{name}(_total)?{{", line) for line in lines)}

    wait_for(lambda: published() == set(names), 60)


def fusechat_lines(config: RunConfig) -> list[dict]:
    import json

    text = (config.run.output / "logs" / "extract.llama.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
