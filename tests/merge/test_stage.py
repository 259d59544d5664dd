"""The door of merging over a run folder: targets in, an artifact out, skipped, refused and resumed as artifacts are."""

from pathlib import Path

import pytest
import tiny_models
import torch
from merge_models import load_model
from resealed import seal_again
from stages_here import merge

from fusechat.config import RunConfig, load_config
from fusechat.errors import ArtifactError, ConfigError, ModelError
from fusechat.storage import artifact
from merge import merge_tensors


@pytest.fixture
def config(run_file: Path) -> RunConfig:
    """A run whose targets are finished artifacts."""
    config = load_config(run_file)
    for seed, source in enumerate(config.sources, 20):
        folder = config.target_path(source.name)
        claim = artifact.claim(folder, "target", settings={"seed": seed}, parents={})
        tiny_models.save_llama(folder, seed=seed)
        (folder / "chat_template.jinja").write_text("the template it was trained under")
        claim.finish({"steps": 1})
    return config


def test_stage_leaves_a_fused_artifact_that_is_skipped_afterwards(config: RunConfig) -> None:
    made = merge(config)
    assert made.kind == "fused" and made.url == str(config.fused_path)
    names = {source.name for source in config.sources}
    assert set(made.counts["coefficients"]) == set(made.counts["update_norm"]) == names
    assert made.record["settings"]["parameters"] == {"select_topk": 0.1, "variant": "released"}
    assert set(made.record["parents"]) == names
    again = merge(config)
    assert again.record == made.record


def test_stage_merges_what_merge_tensors_merges_and_keeps_the_targets_template(config: RunConfig) -> None:
    merge(config)
    base, merged = load_model(Path(config.pivot.model)), load_model(config.fused_path)
    targets = {source.name: load_model(config.target_path(source.name)) for source in config.sources}
    for name in base:
        expected = merge_tensors("sce", base[name], {target: weights[name] for target, weights in targets.items()})
        assert torch.equal(merged[name], expected)
    assert (config.fused_path / "chat_template.jinja").read_text() == "the template it was trained under"
    assert (config.fused_path / "tokenizer.json").is_file()


def test_stage_with_other_parameters_is_refused_with_the_difference(config: RunConfig) -> None:
    merge(config)
    section = config.merge.model_copy(update={"parameters": {"select_topk": 0.5}})
    with pytest.raises(ArtifactError, match=r"settings\.parameters\.select_topk: 0\.1 -> 0\.5"):
        merge(config.model_copy(update={"merge": section}))
    restart = config.run.model_copy(update={"if_changed": "restart"})
    made = merge(config.model_copy(update={"merge": section, "run": restart}))
    assert made.record["settings"]["parameters"]["select_topk"] == 0.5


def test_stage_gives_the_runs_seed_to_methods_that_draw(config: RunConfig) -> None:
    section = config.merge.model_copy(update={"method": "dare_ties"})
    made = merge(config.model_copy(update={"merge": section, "run": config.run.model_copy(update={"seed": 7})}))
    assert made.record["settings"]["parameters"]["seed"] == 7


def test_stage_with_an_unknown_parameter_leaves_nothing_behind(config: RunConfig) -> None:
    section = config.merge.model_copy(update={"parameters": {"select_tpk": 0.5}})
    with pytest.raises(ConfigError, match="did you mean 'select_topk'"):
        merge(config.model_copy(update={"merge": section}))
    assert not config.fused_path.exists()
    merge(config)


def test_stage_with_a_target_that_equals_the_pivot_leaves_nothing_but_its_plan(config: RunConfig) -> None:
    target = config.target_path(config.sources[0].name) / "model.safetensors"
    trained = target.read_bytes()
    target.write_bytes((Path(config.pivot.model) / "model.safetensors").read_bytes())
    seal_again(target.parent)
    with pytest.raises(ModelError, match="equals the base in every tensor"):
        merge(config)
    assert [path.name for path in config.fused_path.iterdir()] == [artifact.RECIPE_FILE]
    target.write_bytes(trained)
    seal_again(target.parent)
    section = config.merge.model_copy(update={"parameters": {"select_topk": 0.5}})
    merge(config.model_copy(update={"merge": section}))  # not refused: nothing was merged there


def test_stage_without_a_trained_target_says_which(config: RunConfig) -> None:
    (config.target_path(config.sources[0].name) / "artifact.json").unlink()
    with pytest.raises(ArtifactError, match="found no finished target artifact"):
        merge(config)


def test_stage_killed_between_merging_and_recording_finishes_at_once(config: RunConfig) -> None:
    made = merge(config)
    (config.fused_path / "artifact.json").unlink()
    time = (config.fused_path / "model.safetensors").stat().st_mtime_ns
    assert merge(config).fingerprint == made.fingerprint
    assert (config.fused_path / "model.safetensors").stat().st_mtime_ns == time
