"""LoRA adapters as targets, against PEFT's own merge."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from merge_models import llama_weights, save_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tensor_values import values
from transformers import AutoModelForCausalLM

from fusechat.errors import ModelError
from merge.checkpoint_merge import begin, thread_pool
from merge.inputs import Inputs
from merge.recipe import MergeRecipe, check_changed, make_recipe
from merge.shard_merge import merge_shard, read_shard_record


def save_adapter(base: Path, folder: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """Train-like random factors through PEFT; returns PEFT's merged weights."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=10, **settings))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(folder)
    return adapted.merge_and_unload().state_dict()


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "down_proj"]},
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {"target_modules": ["embed_tokens", "o_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
        {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
        {"target_modules": ["q_proj"], "init_lora_weights": "mica"},
    ],
    ids=["plain", "rslora", "patterns", "embedding", "whole head", "gaussian", "orthogonal", "mica"],
)
def test_adapter_as_target_equals_peft_merge(tmp_path: Path, settings: dict) -> None:
    base = save_model(tmp_path / "base", llama_weights())
    merged = save_adapter(base, tmp_path / "adapter", **settings)
    inputs = Inputs(base, {"t": tmp_path / "adapter"})
    check_changed(inputs)
    changed = 0
    for name, weights in llama_weights().items():
        read = values(inputs, name)
        torch.testing.assert_close(read, merged[name], atol=1e-6, rtol=0)
        changed += not torch.equal(read, weights)
    assert changed > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora: the adapter has DoRA"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3', expected LORA"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens: the adapter has updates"),
        ({"use_qalora": True}, "use_qalora: the adapter has pooled inputs"),
        ({"kasa_config": {"a": 1}}, "kasa_config: the adapter has a diagonal"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "layer_replication: the adapter has a base whose layers"),
        ({"init_lora_weights": "PiSSA"}, "init_lora_weights is 'PiSSA'"),
        ({"init_lora_weights": "corda"}, "init_lora_weights is 'corda'"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights is 'lora_ga'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
        ({"init_lora_weights": "next_year"}, "init_lora_weights is 'next_year'"),
    ],
)
def test_other_adapters_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    base = save_model(tmp_path / "base", llama_weights())
    save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        Inputs(base, {"t": tmp_path / "adapter"})


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_adapter_on_a_base_that_its_initialisation_changed_is_refused_until_it_is_converted(
    tmp_path: Path, start: str
) -> None:
    base = save_model(tmp_path / "base", llama_weights())
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=10, target_modules=["q_proj"], init_lora_weights=start, task_type="CAUSAL_LM")
    )
    adapted.save_pretrained(tmp_path / "untrained")
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter += 0.05 * torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=f"init_lora_weights is '{start}': .*path_initial_model_for_weight_conversion"):
        Inputs(base, {"t": tmp_path / "adapter"})

    adapted.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "untrained"))
    merged = adapted.merge_and_unload().state_dict()
    inputs = Inputs(base, {"t": tmp_path / "plain"})
    for name in llama_weights():
        torch.testing.assert_close(values(inputs, name), merged[name], atol=1e-5, rtol=0)


def test_merge_begun_with_another_scale_or_tokenizer_starts_afresh(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", llama_weights())
    save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    changes = {tmp_path / "adapter" / "adapter_config.json": {"lora_alpha": 5}, base / "tokenizer.json": {"model": {}}}
    for file, change in changes.items():
        begun = recipe_of(base, tmp_path)
        begin(begun)
        with thread_pool(1) as pool:
            merge_shard(begun, 0, Inputs(begun.base, begun.targets), pool)
        file.write_text(json.dumps((json.loads(file.read_text()) if file.is_file() else {}) | change))
        recipe = recipe_of(base, tmp_path)
        assert not begin(recipe)
        assert read_shard_record(recipe, 0) is None


def recipe_of(base: Path, folder: Path) -> MergeRecipe:
    with thread_pool(1) as pool:
        return make_recipe(
            method="task_arithmetic",
            base=base,
            targets={"t": folder / "adapter"},
            out=folder / "out",
            parameters={},
            pool=pool,
        )


def test_adapter_with_broken_factors_is_named(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", llama_weights())
    save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    whole = load_file(file)
    up = next(name for name in whole if "lora_B" in name)

    def refused(factors: dict[str, torch.Tensor], message: str) -> None:
        save_file(factors, file)
        with pytest.raises(ModelError, match=message):
            Inputs(base, {"t": tmp_path / "adapter"})

    refused({name: value for name, value in whole.items() if name != up}, r"has the factors \['A'\], expected A and B")
    refused(whole | {up: torch.zeros(7, 4)}, r"its update is \[7, 32\], the base's tensor .* \[32, 32\]")
    refused(whole | {up: torch.zeros(32, 3)}, "do not multiply")
    stray = {name.replace("layers.0", "layers.9"): value for name, value in whole.items()}
    refused(stray, r"adapts 'model.layers.9.self_attn.q_proj.weight', which the base does not have")
    refused(whole | {"base_model.model.what": torch.zeros(1)}, "is no LoRA factor")
    save_file({name: torch.zeros_like(value) for name, value in whole.items()}, file)
    with pytest.raises(ModelError, match="equals the base"):
        check_changed(Inputs(base, {"t": tmp_path / "adapter"}))
