"""A cluster that has no node yet: what a stage asks of Ray makes the autoscaler start one, for extraction and for measuring."""

from pathlib import Path

from growing_cluster import growing_cluster
from growing_drivers import extract, in_own_process, measure

NODE = {"CPU": 2, "GPU": 1, "object_store_memory": 83886080}


def test_extraction_gets_its_node_from_an_autoscaler_that_begins_at_none(tmp_path: Path, run_file: Path) -> None:
    with growing_cluster(tmp_path, node=NODE, most=1) as address:
        rows, nodes = in_own_process(extract, run_file, address)
    assert rows and all(rows)
    assert len(nodes) == 1, "all on the new node"


def test_measuring_gets_its_node_from_an_autoscaler_that_begins_at_none(tmp_path: Path, run_file: Path) -> None:
    with growing_cluster(tmp_path, node=NODE, most=1) as address:
        made = in_own_process(measure, run_file, address)
    assert {kind for kind, _ in made} == {"logprobs", "chosen"}
    assert all(rows for _, rows in made)
