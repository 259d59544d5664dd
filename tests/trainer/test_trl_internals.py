"""Every private name of TRL and transformers that is overridden or read is there in the installed release."""

import inspect
from pathlib import Path

import pytest
from transformers import Trainer
from trl import SFTTrainer

from trainer import trl_internals
from trainer.fusion_trainer import FusionTrainer
from trainer.trl_internals import HookedTrainer

OVERRIDDEN = [name for name, value in vars(HookedTrainer).items() if name.startswith("_") and inspect.isfunction(value)]


def source_file(cls: type) -> str:
    """The text of the file that defines a class: `inspect.getsource` of a class parses the file, which is slower and,
    in CPython 3.11, fails where a finalizer that runs meanwhile formats a traceback."""
    return Path(inspect.getfile(cls)).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*OVERRIDDEN, "compute_loss", "get_batch_samples", "log", "create_model_card"])
def test_overridden_method_exists_and_is_called_upstream(name: str) -> None:
    assert callable(getattr(SFTTrainer, name)), f"SFTTrainer has no {name} any more: nothing calls ours"
    bases = [cls for cls in SFTTrainer.__mro__ if cls.__module__.startswith(("trl", "transformers"))]
    assert any(f"self.{name}" in source_file(cls) for cls in bases), f"nothing upstream calls {name}"


def test_what_is_read_of_the_trainer_is_set_there() -> None:
    source = source_file(Trainer) + source_file(SFTTrainer)
    for name in (
        "_train_batch_size",
        "aux_loss_enabled",
        "current_gradient_accumulation_steps",
        "loss_is_scaled_for_ga",
    ):
        assert name in source, name


def test_private_methods_are_overridden_in_one_file() -> None:
    assert len(OVERRIDDEN) == 5, trl_internals.__file__
    own = [name for name in vars(FusionTrainer) if name.startswith("_") and not name.startswith("__")]
    assert not [name for name in own if hasattr(SFTTrainer, name)]
