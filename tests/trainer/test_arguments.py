"""What becomes of `training.trl`: the published defaults, every field of SFTConfig, and the dtype of the products."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from trl import SFTConfig

from fusechat.config.secrets import HUB_KEY
from trainer import fused_linear_fusion_loss, precision
from trainer.arguments import OURS, training_arguments
from trainer.fusion_trainer import sft_config


def arguments(*, num_processes: int = 1, **trl: Any) -> dict[str, Any]:
    return training_arguments(trl, seed=0, max_tokens=2048, num_processes=num_processes)


def test_arguments_are_the_published_ones_where_none_are_given() -> None:
    for processes, accumulation in ((1, 32), (8, 4)):
        settings = sft_config({"output_dir": "x", **arguments(num_processes=processes)})
        assert (settings.learning_rate, settings.num_train_epochs) == (5e-6, 3)
        assert str(settings.lr_scheduler_type.value) == "cosine"
        assert settings.get_warmup_steps(1000) == 30
        assert (settings.per_device_train_batch_size, settings.gradient_accumulation_steps) == (4, accumulation)
        assert settings.gradient_checkpointing and settings.report_to == []


def test_every_field_of_sft_config_is_reachable_but_those_that_something_else_decides() -> None:
    decided = [*OURS, *(field.name for field in dataclasses.fields(SFTConfig) if HUB_KEY.match(field.name))]
    fields = [field for field in dataclasses.fields(SFTConfig) if field.init and field.name not in decided]
    defaults = SFTConfig(output_dir="x", report_to="none", use_cpu=True, bf16=False)
    assert len(fields) > 100
    for field in fields:
        value = getattr(defaults, field.name)
        assert arguments(**{field.name: value})[field.name] == value, field.name


@pytest.mark.parametrize(
    ("amx", "avx512", "onednn", "fast"),
    [(True, False, True, True), (False, True, True, True), (False, False, True, False), (True, True, False, False)],
)
def test_bfloat16_is_the_default_where_the_cpu_multiplies_it(
    amx: bool, avx512: bool, onednn: bool, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert {"amx_tile", "avx512_bf16"} <= set(torch.cpu.get_capabilities()), "torch calls them otherwise here"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_tile": amx, "avx512_bf16": avx512})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    assert precision.cpu_has_bfloat16_products() is fast
    assert arguments()["bf16"] is fast
    assert arguments(fp16=False)["bf16"] is fast
    assert arguments(fp16=True)["bf16"] is False
    assert dtypes_of_products(torch.bfloat16) == {torch.bfloat16 if fast else torch.float32}
    assert dtypes_of_products(torch.float16) == {torch.float32}
    assert dtypes_of_products(torch.float64) == {torch.float64}


class Products(TorchDispatchMode):
    """Notes the dtypes that matrices are multiplied in."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "mm" in func.name():
            self.dtypes |= {value.dtype for value in args if isinstance(value, torch.Tensor)}
        return func(*args, **(kwargs or {}))


def dtypes_of_products(dtype: torch.dtype) -> set[torch.dtype]:
    """Of the fused loss, for a model of that dtype."""
    hidden, head = torch.ones(3, 2, dtype=dtype), torch.ones(5, 2, dtype=dtype)
    rows = torch.zeros(3, 1, dtype=torch.int64), torch.full((3, 1), -0.5)
    with Products() as products:
        fused_linear_fusion_loss(hidden, head, torch.tensor([1, 2, 3]), *rows)
    return products.dtypes
