"""The private methods of TRL's and transformers' trainer that are overridden, each with the reason.

`FusionTrainer` fills in the hooks and overrides what is meant to be (`compute_loss`, `log`). A test holds every private
name against the installed release (tests/trainer/test_trl_internals.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import Sampler
from trl import SFTTrainer

from .checkpoints import STAGING


class HookedTrainer(SFTTrainer, ABC):
    """TRL's SFTTrainer with hooks where it has none."""

    _staging = False

    @abstractmethod
    def make_sampler(self, batch_per_pass: int) -> Sampler[int]:
        """The order of the training set. `batch_per_pass`: examples of one forward pass of one process."""

    def finish_step(self) -> None:
        """Called on every process after each step, before a checkpoint of it is written."""

    def wants_checkpoint(self) -> bool | None:
        """Whether to write a checkpoint after this step; None: what the arguments say."""
        return None

    @abstractmethod
    def write_checkpoint(self, write: Callable[[], None]) -> None:
        """Called for each checkpoint; `write()` leaves it in the folder STAGING within the output folder."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        # The arguments choose among three samplers of transformers; none takes an order of one's own.
        return self.make_sampler(self._train_batch_size)

    def _send_telemetry(self) -> None:
        """Left out: a training run reports to nobody but its user, and TRL asks no argument for that."""

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        # Runs on every process after each step and each epoch, when the callbacks have decided by the arguments, which know
        # steps and epochs but no time.
        self.finish_step()
        wanted = self.wants_checkpoint()
        if wanted is not None:
            self.control.should_save = wanted
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        # A checkpoint is written under its final name; one cut short then looks like a whole one.
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / STAGING) if self._staging else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        def write() -> None:
            self._staging = True
            super(HookedTrainer, self)._save_checkpoint(model, trial)  # type: ignore[no-untyped-call]  # transformers gives it no types
            self._staging = False

        self.write_checkpoint(write)
