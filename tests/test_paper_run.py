"""examples/fusechat-7b.yaml: the paper's sources and settings, sizes that fit, architectures that are tested."""

from pathlib import Path

import pytest
import tiny_architectures

from fusechat.config import load_config
from trainer.arguments import PUBLISHED, PUBLISHED_BATCH

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "fusechat-7b.yaml"


def test_paper_run_has_its_six_sources_and_the_published_settings() -> None:
    config = load_config(EXAMPLE)
    assert {model.model for model in config.models} == set(tiny_architectures.SOURCES)
    assert config.pivot.model == "openchat/openchat_3.5" and {source.template for source in config.sources} == {"pivot"}
    assert {model.name: model.engine.tensor_parallel_size for model in config.models} == {
        "openchat": 1, "starling": 1, "solar": 1, "internlm2": 1, "mixtral": 2, "qwen": 4,
    }  # fmt: skip
    assert (config.extraction.k, config.dialogues.max_tokens, config.training.sft_weight) == (10, 2048, 0.9)
    trl = config.training.trl
    assert {name: trl[name] for name in PUBLISHED} == PUBLISHED
    workers = config.cluster.training_workers
    assert workers * trl["per_device_train_batch_size"] * trl["gradient_accumulation_steps"] == PUBLISHED_BATCH
    assert workers == config.cluster.gpus_per_node and trl["fsdp"] is True
    assert config.measured_ids == config.model_ids and config.dialogues.held_out_share >= 0.01
    assert config.merge.method == "sce" and config.merge.parameters["select_topk"] == 0.1


@pytest.mark.parametrize(("gigabytes", "sizes"), [(80, {"mixtral": 2, "qwen": 4}), (141, {"mixtral": 1, "qwen": 2})])
def test_paper_run_tensor_parallel_sizes_hold_the_weights_and_half_of_them_do_not(
    gigabytes: int, sizes: dict[str, int]
) -> None:
    weights = {"openchat": 14.5, "starling": 14.5, "solar": 21.5, "internlm2": 39.7, "mixtral": 93.4, "qwen": 144.6}
    for name, size in weights.items():
        ranks = sizes.get(name, 1)
        room = 0.9 * gigabytes - 6  # KV cache, logits, activations and runtime
        assert size / ranks <= room, name
        assert ranks == 1 or size / (ranks // 2) > room, name


def test_paper_run_every_source_has_an_architecture_that_engines_are_tested_on() -> None:
    for architecture in tiny_architectures.SOURCES.values():
        assert architecture in [*tiny_architectures.ARCHITECTURES, "internlm2"]
