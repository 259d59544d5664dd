"""Stores and records that mean harm are damage with a name: other shapes, other bytes, other documents."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import nested, survives

from fusechat.app.inspection import show_artifact
from fusechat.app.open_rows import OpenRows
from fusechat.app.status import artifact_state
from fusechat.config.artifacts import ArtifactEntry
from fusechat.storage import artifact
from fusechat.storage.row_store import RowStore
from fusechat.storage.seals import sealed
from fusechat.storage.shard_layout import lay_out_shards
from fusechat.storage.tokens import Tokens
from fusechat.storage.tokens_reader import TokensReader, read_tokens

WRONG = [
    None,
    5,
    -1,
    2**63,
    1e308,
    "x",
    [],
    {},
    [1],
    True,
    "../..",
    {"a": 1},
    0,
    [0],
    [2**40],
    [2**40, 3],
    "<f8",
    "int64",
    [-1],
]
SPOILT = ["", "[]", "5", "null", "{", "[" * 5000, '{"a":' * 3000]


def changed(document: Any, draw: random.Random) -> str:
    """The JSON document with one value, anywhere in it, replaced by a wrong one."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(value, dict | list):
                walk(value)

    walk(document)
    node, key = draw.choice(places)
    node[key] = draw.choice(WRONG)
    return json.dumps(document)


def spoil(url: Path, read: Callable[[], Any], draw: random.Random) -> None:
    """Spoil each file of a store in many ways, one at a time, and read it each time."""
    whole = {path: path.read_bytes() for path in sorted(url.rglob("*")) if path.is_file()}
    chunks = [path for path in whole if path.name != "zarr.json"]
    survives(read)
    for path, data in whole.items():
        if path.name == "zarr.json":
            variants = [text.encode() for text in (*SPOILT, *(changed(json.loads(data), draw) for _ in range(15)))]
        else:
            flipped = bytearray(data)
            flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            variants = [b"", data[: len(data) // 2], bytes(flipped), draw.randbytes(50), whole[draw.choice(chunks)]]
        for variant in variants:
            path.write_bytes(variant)
            survives(read)
        path.write_bytes(data)
    assert not survives(read), "the store is whole again"


def test_spoilt_rows_are_read_or_refused(tmp_path: Path) -> None:
    layout = lay_out_shards(np.array([3, 4, 5]), np.array([3, 4, 5]), 6)
    store = RowStore.create(str(tmp_path), "logprobs", layout, k=3, vocab_size=100, logprob_step=1 / 32, settings={})
    draw = np.random.default_rng(0)
    for shard in range(layout.num_shards):
        num_rows = layout.rows(shard).stop - layout.rows(shard).start
        logprobs = -np.sort(draw.random((num_rows, 3), np.float32) + 1.5, axis=1)
        ids = np.tile(np.arange(3, dtype=np.uint16), (num_rows, 1))
        store.write_shard(shard, {"topk_ids": ids, "topk_logprobs": logprobs, "label_logprob": logprobs[:, 0].copy()})

    def read() -> None:
        opened = RowStore.open(str(tmp_path), "logprobs")
        opened.label_logprobs(0), list(opened.iter_shards()), opened.read_dialogue(0), opened.missing_shards()

    spoil(tmp_path, read, random.Random(3))


def test_spoilt_tokens_are_read_or_refused(tmp_path: Path) -> None:
    spans = np.full((12, 2), -1, np.int32)
    tokens = Tokens.of_contents(
        np.arange(12, dtype=np.int32), np.ones(12, bool), spans, np.array([0, 3, 7, 12]), {"model": "m"}
    )
    tokens.write(str(tmp_path))

    def read() -> None:
        read_tokens(str(tmp_path))
        reader = TokensReader(str(tmp_path))
        reader.read(range(reader.num_dialogues)), reader.layout(6)

    spoil(tmp_path, read, random.Random(4))


RECORDS = [
    *SPOILT[1:], '"x"', "9" * 5000, "{}", '{"kind": "tokens"}', '{"kind": ["tokens"], "fingerprint": "a", "counts": {}, "seconds": 1}',
    '{"kind": "tokens", "fingerprint": 5, "counts": {}, "seconds": 1}', '{"kind": "tokens", "fingerprint": "a", "counts": 5, "seconds": 1}',
    '{"kind": "tokens", "fingerprint": "a", "counts": {}, "seconds": "x"}',
    '{"kind": "fused", "fingerprint": "a", "counts": {}, "seconds": 1}',
    '{"kind": "tokens", "settings": ' + nested(900) + "}",
]  # fmt: skip


@pytest.mark.parametrize("text", [*RECORDS, "pipe", "endless"])
def test_record_of_an_artifact_that_means_harm_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / artifact.RECORD_FILE
    if text == "pipe":
        os.mkfifo(file)
    elif text == "endless":
        file.symlink_to("/dev/zero")
    else:
        file.write_text(text)
    before = sorted(tmp_path.iterdir())
    if text != "null":  # which says that there is no record
        assert survives(lambda: artifact.claim(tmp_path, "tokens", settings={"a": 1}, parents={}))
        assert sorted(tmp_path.iterdir()) == before, "a refused claim wrote"
    assert survives(lambda: artifact.load(tmp_path, "tokens"))
    assert survives(lambda: OpenRows(str(tmp_path)))
    survives(lambda: artifact_state(ArtifactEntry("tokenize", "", "a", str(tmp_path))))
    for verify, repair in ((False, False), (True, False), (True, True)):
        survives(lambda verify=verify, repair=repair: show_artifact(
            str(tmp_path), dialogue=0, num_rows=1, verify=verify, repair=repair))  # fmt: skip


def finished(folder: Path, setting: str, text: str) -> artifact.Artifact:
    """An artifact of one file."""
    claim = artifact.claim(folder, "prompts", settings={"a": setting}, parents={})
    (folder / "data.txt").write_text(text)
    return claim.finish({})


@pytest.mark.parametrize(
    "name", ["../secret.txt", "/etc/hostname", "a/../../secret.txt", "..", ".", "", "a\0b", "data.txt/../../secret.txt"]
)
@pytest.mark.parametrize("seal", [{"bytes": 1, "sha256": "x"}, {"bytes": 6, "sha256": "x"}])
def test_record_that_names_files_outside_has_none_read_and_none_deleted(
    tmp_path: Path, name: str, seal: dict[str, object]
) -> None:
    secret, folder = tmp_path / "secret.txt", tmp_path / "artifact"
    secret.write_text("secret")
    record = finished(folder, "x", "data").record
    (folder / artifact.RECORD_FILE).write_text(json.dumps(sealed({**record, "files": {name: seal}})))
    assert "names" in survives(lambda: artifact.load(folder, "prompts"))
    assert "names" in survives(lambda: artifact.claim(folder, "prompts", settings={"a": "x"}, parents={}))
    for verify in (True, False):
        assert "names" in survives(
            lambda verify=verify: show_artifact(str(folder), dialogue=0, num_rows=1, verify=verify, repair=not verify)
        )
    assert secret.read_text() == "secret" and (folder / "data.txt").exists()


@pytest.mark.parametrize(
    "seal", [None, 5, [], "x", {}, {"bytes": "4", "sha256": "x"}, {"bytes": 4}, {"bytes": 4, "sha256": 5}]
)
def test_seal_of_another_form_is_refused(tmp_path: Path, seal: object) -> None:
    record = finished(tmp_path, "x", "data").record
    (tmp_path / artifact.RECORD_FILE).write_text(json.dumps(sealed({**record, "files": {"data.txt": seal}})))
    assert "names 'data.txt', expected" in survives(lambda: artifact.load(tmp_path, "prompts"))


def test_record_of_another_run_is_refused_or_names_what_is_not_its(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    finished(own, "x", "own data")
    for setting, said in (("y", "holds work of another recipe"), ("x", "damaged since it was finished: data.txt")):
        finished(other / setting, setting, "other data!")
        (own / artifact.RECORD_FILE).write_bytes((other / setting / artifact.RECORD_FILE).read_bytes())
        assert said in survives(lambda: artifact.claim(own, "prompts", settings={"a": "x"}, parents={}))
        assert "damaged since it was finished: data.txt" in survives(lambda: artifact.load(own, "prompts"))
        assert (own / "data.txt").read_text() == "own data"
