"""The door of alignment on small stores: what it writes, how it resumes, what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from alignment import stage
from alignment.cooccurrence import merge_counts
from alignment.vocabulary_file import load_vocabularies
from fusechat import artifact
from fusechat.config import RunConfig, load_config
from fusechat.contracts import RowKind
from fusechat.damage import find_damage
from fusechat.errors import AlignmentError, ArtifactError
from fusechat.store import RowStore
from fusechat.tokenize_stage import prepare_dialogues, tokenize
from fusechat.tokens import Tokens


def write_random_rows(config: RunConfig, name: str, seed: int = 0) -> None:
    """A finished logprobs store with invented rows, in which labels are likely."""
    tokens, rng = Tokens.read(config.tokens_url(name)), np.random.default_rng(seed)
    vocab_size, k, url = int(tokens.attributes["vocab_size"]), config.extraction.k, config.logprobs_url(name)
    parents = {"tokens": artifact.load(config.tokens_url(name), "tokens")}
    claim = artifact.claim(url, "logprobs", settings={"seed": seed}, parents=parents)
    store = RowStore.create(
        url, "logprobs", tokens.plan(config.extraction.shard_tokens), k=k, vocab_size=vocab_size,
        logprob_step=config.extraction.logprob_step, settings={"seed": seed},
    )  # fmt: skip
    labels = tokens.token_ids[tokens.is_target]
    ids = np.stack([rng.choice(vocab_size, k, replace=False) for _ in labels])
    place = rng.integers(0, k, len(labels))
    missing = ~(ids == labels[:, None]).any(axis=1)
    ids[missing, place[missing]] = labels[missing]
    probs = -np.sort(-rng.dirichlet(np.full(k + 1, 0.3), len(labels))[:, :k], axis=1)
    logprobs = np.log(np.maximum(probs, 1e-9)).astype(np.float32)
    own = np.take_along_axis(logprobs, np.argmax(ids == labels[:, None], axis=1)[:, None], 1)[:, 0]
    for shard in store.missing_shards():
        rows = store.plan.rows(shard)
        arrays = {
            "topk_ids": ids[rows].astype(store_dtype(vocab_size)),
            "topk_logprobs": logprobs[rows],
            "label_logprob": own[rows],
        }
        store.write_shard(shard, arrays)
    claim.finish({})


def store_dtype(vocab_size: int) -> str:
    return "uint16" if vocab_size <= 65_536 else "uint32"


@pytest.fixture
def config(run_file: Path) -> RunConfig:
    """Tokens of the pivot and its source, and invented rows of the source; several shards."""
    config = load_config(run_file, ["extraction.shard_tokens=300"])
    prepare_dialogues(config)
    for model in config.models:
        tokenize(config, model.name)
    for source in config.sources:
        write_random_rows(config, source.name)
    return config


def _changed(config: RunConfig, tmp_path: Path, **alignment: str) -> RunConfig:
    return config.model_copy(update={"alignment": config.alignment.model_copy(update=alignment)})


def test_stage_run_default_covers_all_rows_and_obeys_the_contract(config):
    name = config.sources[0].name
    made = stage.run(config, name)
    store = RowStore.open(config.aligned_url(name), "aligned")
    assert store.plan.num_shards > 1 and not store.missing_shards() and not find_damage(store)
    assert made.counts["coverage"] > 0.99
    assert abs(made.counts["label_bits_per_byte_lost_share"]) < 0.01
    for _, block in store.iter_shards():
        real = block["kind"] != RowKind.EMPTY
        assert np.isfinite(block["label_logprob"][real]).all() and (block["label_logprob"][real] <= 0).all()
        assert (np.exp(block["topk_logprobs"]).sum(axis=1) <= 1 + 1e-5).all()


def test_stage_run_twice_skips_and_leaves_the_store_alone(config):
    name = config.sources[0].name
    first = stage.run(config, name)
    before = sorted((p, p.stat().st_mtime_ns) for p in Path(first.url).rglob("*") if p.is_file())
    assert stage.run(config, name).fingerprint == first.fingerprint
    assert before == sorted((p, p.stat().st_mtime_ns) for p in Path(first.url).rglob("*") if p.is_file())


def test_stage_run_after_lost_shards_writes_the_same_bytes(config):
    name = config.sources[0].name
    url = Path(stage.run(config, name).url)
    objects = {p: p.read_bytes() for p in url.rglob("c/*") if p.is_file()}
    record = json.loads((url / "artifact.json").read_text())
    (url / "artifact.json").unlink()
    (url / "label_logprob" / "c" / "1").unlink()
    again = stage.run(config, name)
    assert {p: p.read_bytes() for p in url.rglob("c/*") if p.is_file()} == objects
    assert again.counts == record["counts"]


def test_stage_shards_by_plain_function_equal_the_run(config, tmp_path):
    name = config.sources[0].name
    whole = RowStore.open(stage.run(config, name).url, "aligned")
    other = config.model_copy(update={"run": config.run.model_copy(update={"store": str(tmp_path / "other")})})
    for folder in ("tokens", "logprobs"):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / folder).symlink_to(Path(config.store_url).resolve() / folder)
    plan = Tokens.read(config.tokens_url(config.pivot.name)).plan(config.extraction.shard_tokens)
    counts = merge_counts(stage.count_shard(other, name, shard) for shard in reversed(range(plan.num_shards)))
    claim, store = stage.claim_store(other, name, counts=counts)
    for shard in reversed(store.missing_shards()):
        stage.align_shard(other.dump(), name, shard)
    assert stage.finish(claim, store).counts["kinds"] == artifact.load(whole.url, "aligned").counts["kinds"]
    for shard in range(store.plan.num_shards):
        for key, array in store.read_shard(shard).items():
            np.testing.assert_array_equal(array, whole.read_shard(shard)[key])


@pytest.mark.parametrize(
    "rules",
    [{"token_rule": "released", "vocabulary_rule": "released"}, {"row_rule": "map"}, {"vocabulary_rule": "min_edit"}],
)
def test_stage_run_other_rules_write_whole_stores(config, tmp_path, rules):
    name = config.sources[0].name
    made = stage.run(_changed(config, tmp_path, **rules), name)
    store = RowStore.open(made.url, "aligned")
    assert not find_damage(store)
    kinds = np.concatenate([block["kind"] for _, block in store.iter_shards()])
    assert (RowKind.ONE_HOT in kinds) == (rules.get("token_rule") == "released")
    assert made.counts["coverage"] > 0


def test_stage_run_other_rule_on_same_folder_is_refused(config, tmp_path):
    stage.run(config, config.sources[0].name)
    with pytest.raises(ArtifactError, match="row_rule"):
        stage.run(_changed(config, tmp_path, row_rule="map"), config.sources[0].name)


def test_stage_same_tokenizer_rows_pass_through(run_file, tiny_models):
    overrides = [f"sources.0.model={tiny_models['llama']}", "extraction.shard_tokens=300"]
    config = load_config(run_file, overrides)
    prepare_dialogues(config)
    for model in config.models:
        tokenize(config, model.name)
    name = config.sources[0].name
    write_random_rows(config, name)
    made = stage.run(config, name)
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
    tokens = Tokens.read(config.tokens_url(name))
    attributes = {**tokens.attributes, "dialogues_digest": "another"}
    Tokens(tokens.token_ids, tokens.is_target, tokens.content_span, tokens.offsets, attributes).write(
        config.tokens_url(name)
    )
    with pytest.raises(AlignmentError, match="expected the same dialogues"):
        stage.run(config, name)


def test_stage_vocabularies_survive_the_file(config):
    made = stage.run(config, config.sources[0].name)
    found = load_vocabularies(made.url)
    assert found.origin_counts() == made.counts["vocabulary_map"]
    assert found.counts.matrix().sum() == found.counts.counts.sum() > 0
