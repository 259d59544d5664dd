"""The stores on an object store: a real S3 API server on loopback, started here; one that fails for a while."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

pytest.importorskip("moto")
from moto.server import ThreadedMotoServer
from row_stores import fill, new_store

from fusechat.errors import ArtifactError
from fusechat.storage import artifact
from fusechat.storage.damage import find_damage
from fusechat.storage.row_arrays import COMMIT_ARRAY
from fusechat.storage.row_store import RowStore


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setitem(fsspec.config.conf, "s3", {"endpoint_url": f"http://{host}:{port}"})
        fsspec.filesystem("s3").mkdir("rows")
        yield "s3://rows"
        fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


def test_store_on_s3_holds_what_a_local_one_holds(bucket: str, tmp_path: Path) -> None:
    remote, local = new_store(f"{bucket}/run/logprobs/a"), new_store(tmp_path / "a")
    fill(remote)
    fill(local)
    again = RowStore.open(f"{bucket}/run/logprobs/a", "logprobs")
    assert again.missing_shards() == [] and find_damage(again) == []
    for shard in range(local.layout.num_shards):
        here, there = local.read_shard(shard), again.read_shard(shard)
        for name, values in here.items():
            np.testing.assert_array_equal(values, there[name])
    assert remote.num_bytes() == pytest.approx(local.num_bytes(), rel=0.01)


def test_store_on_s3_resumes_from_its_marks_and_sees_damage(bucket: str) -> None:
    url = f"{bucket}/run/logprobs/b"
    store = new_store(url)
    fill(store, [0, 1])
    filesystem = fsspec.filesystem("s3")
    assert new_store(url).present_shards() == {0, 1}
    filesystem.rm(f"{url}/{COMMIT_ARRAY}/c/1")
    assert new_store(url).present_shards() == {0}
    fill(store)
    victim = f"{url}/topk_ids/c/1/0"
    data = bytearray(filesystem.cat(victim))
    data[10] ^= 0x40
    filesystem.pipe(victim, bytes(data))
    assert [damage.shard for damage in find_damage(RowStore.open(url, "logprobs"))] == [1]


def test_artifact_on_s3_is_claimed_finished_and_refused(bucket: str) -> None:
    url = f"{bucket}/run/tokens/a"
    claim = artifact.claim(url, "tokens", settings={"k": 1}, parents={})
    assert claim.artifact is None
    claim.finish({"rows": 1})
    assert artifact.claim(url, "tokens", settings={"k": 1}, parents={}).artifact is not None
    with pytest.raises(ArtifactError, match=r"settings\.k: 1 -> 2"):
        artifact.claim(url, "tokens", settings={"k": 2}, parents={})
    filesystem = fsspec.filesystem("s3")
    filesystem.pipe(f"{url}/token_ids/c/0", b"of the first plan")
    restarted = artifact.claim(url, "tokens", settings={"k": 2}, parents={}, if_changed="restart")
    assert restarted.artifact is None and [name.rsplit("/", 1)[1] for name in filesystem.find(url)] == ["plan.json"]
