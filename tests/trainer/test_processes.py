"""Training by several processes: DDP, FSDP2, the shipped FSDP and DeepSpeed configurations, gathered weights."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import trainer_runs
from peft import get_peft_model
from stages_here import train
from trainer_runs import losses, weights

from fusechat.config import LoraSection
from fusechat.errors import ModelError
from trainer import target_model

ROOT = Path(__file__).parents[2]


def two_processes(*command: str) -> list[str]:
    """Run a script or module in two CPU processes that know each other; what each printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    running = [
        subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **common, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    printed = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], printed[0][1][-3000:] + printed[1][1][-3000:]
    return [output for output, _ in printed]


def test_two_processes_give_the_loss_curve_of_one(tmp_path: Path) -> None:
    single = trainer_runs.make_run(tmp_path / "one", trl={"gradient_accumulation_steps": 2})
    train(single, "other")
    config = trainer_runs.make_run(tmp_path / "two", trl={"gradient_accumulation_steps": 1, "save_steps": 2})
    printed = two_processes("-m", "trainer", str(tmp_path / "two" / "run.yaml"), "other")
    assert [text.split() for text in printed] == [[str(config.target_path("other"))], []]
    assert losses(config) == pytest.approx(losses(single), abs=1e-5)
    for name, weight in weights(single).items():
        assert torch.allclose(weights(config)[name], weight, atol=1e-4)


SHARDED = """
import sys, torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM
from trainer import fusion_head
from trainer.losses import LossOptions

generator = torch.Generator().manual_seed(0)
ids = torch.randint(4, 300, (2, 12), generator=generator)
fusion = {
    "hidden_index": torch.arange(16) + 3, "labels": ids.flatten()[4:20], "scale": torch.tensor(1 / 16),
    "topk_ids": torch.randint(0, 300, (16, 5), generator=generator),
    "topk_logprobs": torch.log_softmax(torch.randn(16, 5, generator=generator), 1),
}

def load(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    fusion_head.install(model, LossOptions())
    return model

dist.init_process_group("gloo")
for folder, head_apart in ((sys.argv[1], False), (sys.argv[2], True)):
    whole, sharded = load(folder), load(folder)
    for layer in sharded.model.layers:
        fully_shard(layer)
    if head_apart:
        fully_shard(sharded.get_output_embeddings())
    fully_shard(sharded)
    left, right = whole(input_ids=ids, fusion=fusion), sharded(input_ids=ids, fusion=fusion)
    left.loss.backward()
    right.loss.backward()
    assert torch.allclose(left.loss, right.loss, atol=1e-6), (left.loss, right.loss)
    gradients = {name: parameter.grad for name, parameter in whole.named_parameters()}
    for name, parameter in sharded.named_parameters():
        assert torch.allclose(parameter.grad.full_tensor(), gradients[name], atol=1e-5), name
dist.destroy_process_group()
"""


def test_loss_of_a_model_in_fsdp2_shards_equals_that_of_the_whole(tmp_path: Path) -> None:
    """A tied head in the root's shard group; an untied one in a group of its own, gathered by the loss."""
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED, encoding="utf-8")
    tied, untied = tiny_models.save_llama(tmp_path / "tied"), tiny_models.save_mixtral(tmp_path / "untied")
    two_processes(str(script), str(tied), str(untied))


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "fsdp").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_fsdp_config_is_what_accelerate_reads(path: Path) -> None:
    from accelerate.commands.config.config_args import ClusterConfig
    from accelerate.commands.launch import launch_command_parser

    config = ClusterConfig.from_yaml_file(str(path))
    assert str(config.distributed_type).endswith("FSDP") and config.num_processes == 8 * config.num_machines
    flags = {action.dest for action in launch_command_parser()._actions}
    assert config.fsdp_config.keys() <= flags
    assert config.fsdp_config["fsdp_version"] == 2 and config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "deepspeed").glob("*.json")), ids=lambda path: path.stem)
def test_shipped_deepspeed_config_is_what_accelerate_reads(path: Path) -> None:
    from accelerate.utils.deepspeed import HfDeepSpeedConfig

    config = HfDeepSpeedConfig(str(path))
    assert config.get_value("zero_optimization.stage") == 2
    for name in (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
    ):
        assert config.get_value(name) == "auto"


@pytest.mark.parametrize("lora", [None, LoraSection(r=2)], ids=["full", "lora"])
def test_gathered_weights_make_a_whole_model(lora: LoraSection | None, tmp_path: Path) -> None:
    """What FSDP gathers at the end may leave out the tied head."""
    folder = tiny_models.save_llama(tmp_path)
    trained: Any = target_model.load_pivot(folder, {"dtype": "float32"})
    if lora is not None:
        trained = get_peft_model(trained, target_model.lora_config(lora))
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.1)
    state = {name: tensor for name, tensor in trained.state_dict().items() if "lm_head" not in name}
    whole = target_model.whole_model(None, state, folder, lora)
    expected = target_model.whole_model(trained, None, folder, lora)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.allclose(whole(ids).logits, expected(ids).logits, atol=1e-5)
    with pytest.raises(ModelError, match="one side only"):
        target_model.whole_model(None, dict(list(state.items())[1:]), folder, lora)
