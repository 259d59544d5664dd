"""The door of alignment on small stores: what it writes, how it resumes, what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from alignment_runs import beside, name_other_dialogues, objects_of, prepared
from stages_here import align

from alignment import stage
from alignment.recipe import recipe
from alignment.rows.shard_alignment import ShardAligner, ShardCounter
from alignment.tokens.cooccurrence import merge_counts
from alignment.vocabulary.vocabulary_file import load_vocabularies
from fusechat.app.inspection import show_artifact
from fusechat.config import RunConfig
from fusechat.errors import AlignmentError, ArtifactError, BusyError
from fusechat.storage import artifact
from fusechat.storage.contracts import RowKind
from fusechat.storage.damage import find_damage
from fusechat.storage.lease import LEASE_FILE, hold_store
from fusechat.storage.row_store import RowStore


@pytest.fixture
def config(run_file: Path) -> RunConfig:
    return prepared(run_file, "extraction.shard_tokens=300")


def _changed(config: RunConfig, tmp_path: Path, **alignment: str) -> RunConfig:
    return config.model_copy(update={"alignment": config.alignment.model_copy(update=alignment)})


def test_stage_run_default_covers_all_rows_and_obeys_the_contract(config):
    name = config.sources[0].name
    made = align(config, name)
    store = RowStore.open(config.aligned_url(name), "aligned")
    assert store.layout.num_shards > 1 and not store.missing_shards() and not find_damage(store)
    assert made.counts["coverage"] > 0.99
    assert abs(made.counts["label_bits_per_byte_lost_share"]) < 0.01
    for _, block in store.iter_shards():
        real = block["kind"] != RowKind.EMPTY
        assert np.isfinite(block["label_logprob"][real]).all() and (block["label_logprob"][real] <= 0).all()
        assert (np.exp(block["topk_logprobs"]).sum(axis=1) <= 1 + 1e-5).all()


def test_stage_run_twice_skips_and_leaves_the_store_alone(config):
    name = config.sources[0].name
    first = align(config, name)
    before = sorted((p, p.stat().st_mtime_ns) for p in Path(first.url).rglob("*") if p.is_file())
    assert align(config, name).fingerprint == first.fingerprint
    assert before == sorted((p, p.stat().st_mtime_ns) for p in Path(first.url).rglob("*") if p.is_file())


def test_stage_run_where_the_models_moved_after_they_were_tokenized(run_file, tiny_models, tmp_path):
    for name, folder in tiny_models.items():
        shutil.copytree(folder, tmp_path / "one" / name)
    folders = [tmp_path / "one" / "llama", tmp_path / "one" / "mixtral"]
    config = prepared(run_file, *(f"{key}.model={at}" for key, at in zip(("pivot", "sources.0"), folders, strict=True)))
    (tmp_path / "one").rename(tmp_path / "two")
    sources = [config.sources[0].model_copy(update={"model": str(tmp_path / "two" / "mixtral")})]
    pivot = config.pivot.model_copy(update={"model": str(tmp_path / "two" / "llama")})
    made = align(config.model_copy(update={"pivot": pivot, "sources": sources}), sources[0].name)
    assert made.counts["coverage"] > 0.99


def test_stage_run_after_lost_shards_writes_the_same_bytes(config):
    name = config.sources[0].name
    url = Path(align(config, name).url)
    objects = objects_of(url)
    record = json.loads((url / "artifact.json").read_text())
    (url / "artifact.json").unlink()
    (url / "label_logprob" / "c" / "1").unlink()
    again = align(config, name)
    assert objects_of(url) == objects
    assert again.counts == record["counts"]


def test_stage_shards_in_any_order_equal_the_run(config, tmp_path):
    name = config.sources[0].name
    whole = Path(align(config, name).url)
    other = beside(config, tmp_path)
    inputs = stage.alignment_inputs(other.layout, other.pivot, other.sources[0], other.alignment)
    claim, store = stage.claim_store(
        other.layout, inputs, recipe(other.pivot.name, name, other.alignment, other.extraction)
    )
    counter, aligner = ShardCounter(inputs), ShardAligner(inputs)
    counter.start()
    parts = [counter.run_unit(shard)["counts"] for shard in reversed(range(store.layout.num_shards))]
    stage.map_vocabularies(inputs, merge_counts(parts), inputs.open_tokenizers())
    aligner.start()
    for shard in reversed(store.missing_shards()):
        aligner.run_unit(shard)
    assert stage.finish(claim, store).counts == artifact.load(whole, "aligned").counts
    assert objects_of(Path(store.url)) == objects_of(whole)


@pytest.mark.parametrize(
    "rules",
    [{"token_rule": "released", "vocabulary_rule": "released"}, {"row_rule": "map"}, {"vocabulary_rule": "min_edit"}],
)
def test_stage_run_other_rules_write_whole_stores(config, tmp_path, rules):
    name = config.sources[0].name
    made = align(_changed(config, tmp_path, **rules), name)
    store = RowStore.open(made.url, "aligned")
    assert not find_damage(store)
    kinds = np.concatenate([block["kind"] for _, block in store.iter_shards()])
    assert (RowKind.ONE_HOT in kinds) == (rules.get("token_rule") == "released")
    assert made.counts["coverage"] > 0


def test_stage_run_other_rule_on_same_folder_is_refused(config, tmp_path):
    align(config, config.sources[0].name)
    with pytest.raises(ArtifactError, match="row_rule"):
        align(_changed(config, tmp_path, row_rule="map"), config.sources[0].name)


def test_stage_same_tokenizer_rows_pass_through(run_file, tiny_models):
    config = prepared(run_file, "extraction.shard_tokens=300", f"sources.0.model={tiny_models['llama']}")
    name = config.sources[0].name
    made = align(config, name)
    rows, aligned = RowStore.open(config.logprobs_url(name), "logprobs"), RowStore.open(made.url, "aligned")
    for shard, block in aligned.iter_shards():
        assert (block["kind"] == RowKind.IDENTITY).all()
        expected = rows.read_shard(shard)
        for key in ("topk_ids", "label_logprob"):
            np.testing.assert_array_equal(block[key], expected[key])
        np.testing.assert_allclose(block["topk_logprobs"], expected["topk_logprobs"], atol=1 / 64)
    assert made.counts["coverage"] == 1 and abs(made.counts["bits_per_byte_lost_share"]) < 1e-3


def test_stage_tokens_of_other_dialogues_are_refused(config):
    name = config.sources[0].name
    name_other_dialogues(config, name)
    with pytest.raises(AlignmentError, match="expected the same dialogues"):
        align(config, name)


def test_stage_vocabularies_survive_the_file(config):
    made = align(config, config.sources[0].name)
    vocabularies = load_vocabularies(made.url)
    assert vocabularies.origin_counts() == made.counts["vocabulary_map"]
    assert vocabularies.counts.matrix().sum() == vocabularies.counts.counts.sum() > 0


def test_inspect_shows_the_figures_by_kind_of_text(config, capsys):
    made = align(config, config.sources[0].name)
    show_artifact(made.url, dialogue=0, num_rows=3, verify=True)
    lines = capsys.readouterr().out.splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("text ")) :]
    assert table[0].split() == ["text", "rows", "coverage", "mass", "home", "bits/byte", "lost", "by", "the", "labels"]
    names = ["all", *made.counts["by_text"]]
    assert {"prose", "digits", "code", "other_scripts", "end_of_turn"} <= set(names)
    for name, line in zip(names, table[1:], strict=False):
        part = made.counts if name == "all" else made.counts["by_text"][name]
        assert line.split()[:3] == [name, f"{part['rows']:,}", f"{part['coverage']:.2%}"]


def test_inspect_finds_the_tokens_under_the_names_that_an_ablation_gives(config, capsys):
    made = align(config, config.sources[0].name)
    tokens = Path(config.tokens_url(config.pivot.name))
    tokens.rename(f"{tokens}-0123456789ab")
    store = Path(made.url).rename(f"{made.url}-ba9876543210")
    show_artifact(str(store), dialogue=0, num_rows=3, verify=False)
    assert "dialogue 0, up to its first scored token" in capsys.readouterr().out
    (Path(f"{tokens}-0123456789ab") / "artifact.json").unlink()
    with pytest.raises(ArtifactError, match=r"its rows are of tokens \w+, and none below .*tokens are those"):
        show_artifact(str(store), dialogue=0, num_rows=3, verify=False)


def test_stage_takes_the_store_for_itself_and_leaves_nothing_of_killed_writers(config):
    source = config.sources[0].name
    stage.prepare(config.layout, config.pivot, config.sources[0], config.alignment, config.extraction)
    partial = Path(config.aligned_url(source)) / "topk_ids" / "c" / "0.0123abcd.partial"
    partial.parent.mkdir()
    partial.write_bytes(b"half")
    with hold_store(config.aligned_url(source), "refuse"), pytest.raises(BusyError, match="is writing this store"):
        align(config, source)
    align(config, source)
    assert not partial.exists() and not (Path(config.aligned_url(source)) / LEASE_FILE).exists()
