"""Extraction with real engines in real Ray actors, killed in the middle of a shard: an actor, the driver, one of two
tensor-parallel ranks, and a dialogue on which the engine raises. After each the store equals one written without it
(`benchmarks/bench_faults.py` compares those of killed ranks byte for byte).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fault_runs import extract, extracting, held, store_of
from gated_teachers import GatedTeacher, gate_of, gated, tries, wait_for
from stages_here import prepare_dialogues, tokenize
from tiny_runs import tiny_run

from cluster import extraction
from cluster.pool.session import ray_session
from fusechat import open_rows
from fusechat.config import ClusterSection, RunConfig
from fusechat.errors import ClusterError

LAST = 5
"""The shard that is held in flight: some are done before, some come after."""


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    with ray_session(ClusterSection(num_cpus=2)):
        yield


@pytest.fixture(autouse=True)
def gated_teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction.stage, "prepare", gated(GatedTeacher))


@pytest.fixture(scope="module")
def make_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path], dialogue_files: dict[str, Path]
) -> Callable[..., RunConfig]:
    base = tmp_path_factory.mktemp("faults")
    values = tiny_run(base / "tokens", tiny_models, dialogue_files)
    values["extraction"] = {"k": 5, "shard_tokens": 64, "self_check_dialogues": 0}
    values["cluster"] = {"engines": 1, "max_attempts": 2}
    values["pivot"]["engine"] = {"kv_cache_gib": 0.05}
    prepare_dialogues(RunConfig.model_validate(values))
    tokenize(RunConfig.model_validate(values), "llama")

    def make(name: str, **engine: Any) -> RunConfig:
        shutil.copytree(base / "tokens", base / name)
        pivot = {**values["pivot"], "engine": {**values["pivot"]["engine"], **engine}}
        return RunConfig.model_validate({**values, "run": {"output": str(base / name)}, "pivot": pivot})

    return make


@pytest.fixture(scope="module")
def undisturbed(make_run: Callable[..., RunConfig]) -> RunConfig:
    """A run without a fault."""
    config = make_run("whole")
    extract(config)
    return config


@pytest.fixture(scope="module")
def whole(undisturbed: RunConfig) -> dict[str, bytes]:
    """Its store."""
    return store_of(undisturbed)


@pytest.fixture(scope="module")
def dying() -> Iterator[list[psutil.Process]]:
    """Processes that must end by themselves. Ray's take most of a minute for it, so they are looked for behind all tests."""
    found: list[psutil.Process] = []
    yield found
    assert psutil.wait_procs(found, timeout=60)[1] == []


def actor_of(config: RunConfig, shard: int) -> psutil.Process:
    return psutil.Process(int((gate_of(config) / f"tried.{shard}").read_text().split()[0]))


def assert_done_again(config: RunConfig, *, unlogged: int = 0) -> None:
    """Of the shards only those in flight (two) were begun twice; each stands once in the log.

    Args:
        unlogged: at most so many were written by a driver that died before it could say so.
    """
    counts = tries(config)
    again = {shard for shard, count in counts.items() if count > 1}
    assert LAST in again and len(again) <= 2 and max(counts.values()) == 2, counts
    log = (config.run.output / "logs" / "extract.llama.jsonl").read_text(encoding="utf-8")
    done = [line["shard"] for line in map(json.loads, log.splitlines()) if line["event"] == "done"]
    assert len(set(done)) == len(done) and set(done) <= set(counts) and len(counts) - len(done) <= unlogged
    print(f"{len(again)} of {len(counts)} shards done again")


def test_killed_actor_is_replaced_and_the_store_is_the_same(
    make_run: Callable[..., RunConfig], whole: dict[str, bytes]
) -> None:
    config = make_run("actor")
    with extracting(config, [LAST], seconds=300):
        wait_for(lambda: LAST in held(config))
        actor_of(config, LAST).send_signal(signal.SIGKILL)
    assert store_of(config) == whole
    assert_done_again(config)


def test_killed_driver_takes_its_engines_along_and_the_next_one_goes_on(
    make_run: Callable[..., RunConfig], whole: dict[str, bytes], dying: list[psutil.Process]
) -> None:
    config = make_run("driver")
    (gate_of(config) / f"hold.{LAST}").touch()
    file = config.run.output / "config.json"
    file.write_text(json.dumps(config.dump()), encoding="utf-8")
    script = Path(__file__).parents[1] / "support" / "extraction_driver.py"
    path = os.pathsep.join([str(script.parents[1]), str(script.parent), os.environ.get("PYTHONPATH", "")])
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"PYTHONPATH": path}
    with subprocess.Popen([sys.executable, str(script), str(file)], env=environment) as driver:
        wait_for(lambda: driver.poll() is not None or (gate_of(config) / f"held.{LAST}").exists())
        family, actor = psutil.Process(driver.pid).children(recursive=True), actor_of(config, LAST)
        assert actor in family
        dying += family
        driver.kill()
    # At once: what the dead driver started may live for a moment yet. Its actor, let go, would finish the shard.
    with extracting(config, [LAST], seconds=300):
        actor.wait(timeout=120)
    assert store_of(config) == whole
    assert_done_again(config, unlogged=1)


def test_killed_rank_takes_its_engine_along_and_both_are_replaced(
    make_run: Callable[..., RunConfig], undisturbed: RunConfig
) -> None:
    """Two ranks sum in another order than one, so the rows equal those of one but for rounding."""
    config = make_run("rank", tensor_parallel_size=2)
    with extracting(config, [LAST], seconds=300):
        wait_for(lambda: LAST in held(config))
        actor = actor_of(config, LAST)
        family = {child: " ".join(child.cmdline()) for child in actor.children(recursive=True)}
        # vLLM renames its ranks, but not in every environment; the resource tracker is the other child.
        ranks = [child for child, command in family.items() if "Worker" in command or "spawn_main" in command]
        assert len(ranks) == 2, (actor, family, tries(config))
        ranks[1].send_signal(signal.SIGKILL)
    ours, theirs = (open_rows(run.logprobs_url("llama")) for run in (config, undisturbed))
    for one, other in zip(ours, theirs, strict=True):
        assert one.label_logprob == pytest.approx(other.label_logprob, abs=1e-3)
        assert one.topk_logprobs == pytest.approx(other.topk_logprobs, abs=1e-2)
    log = (config.run.output / "logs" / "extract.llama.jsonl").read_text(encoding="utf-8")
    assert '"event": "retried"' in log
    assert set(tries(config).values()) <= {1, 2}
    assert sum(count > 1 for count in tries(config).values()) <= 2
    assert psutil.wait_procs([actor, *ranks], timeout=60)[1] == []


def test_dialogue_on_which_the_engine_raises_is_set_aside_and_harms_no_other(
    make_run: Callable[..., RunConfig], whole: dict[str, bytes]
) -> None:
    config = make_run("poison")
    (gate_of(config) / f"poison.{LAST}").touch()
    with pytest.raises(ClusterError, match=rf"llama, shard {LAST}: .*died"):
        extract(config)
    counts = tries(config)
    assert counts[LAST] == 2 and sum(count > 1 for count in counts.values()) <= 2
    (gate_of(config) / f"poison.{LAST}").unlink()
    extract(config)
    assert store_of(config) == whole
    assert tries(config) == {**counts, LAST: 3}
