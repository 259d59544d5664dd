"""TRL's SFTTrainer with the fusion loss; with `trl_internals.py` the only file that imports trl.

TRL and transformers do what they do well (optimizers, schedules, accelerate, FSDP, DeepSpeed, PEFT, reporting); here are
the loss, the order of batches, reading ahead, the logged parts and checkpoints that cannot be half written.
"""

import dataclasses
import difflib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTConfig

from fusechat.errors import ConfigError, FuseChatError
from fusechat.storage.files import read_json, write_json
from fusechat.storage.write_errors import storage_errors

from . import fusion_head
from .batches import EMPTY_UNIT, BatchOrder
from .checkpoints import PREFIX, STAGING, CheckpointPace, publish
from .collator import FUSION_KEY, FusionCollator
from .fading import Fading
from .losses import LossOptions
from .run_log import describe_parts
from .trl_internals import HookedTrainer

PARTS = ("sft", "fusion", "correct", "rows", "row_entropy")
FADING_FILE = "fading.json"
"""Within a checkpoint."""
COUNTS = ("tokens", "won", "weights", "dialogues", "without_source")


class FusionTrainer(HookedTrainer):
    """Trains on the batches of a FusionCollator."""

    # The loss is divided by the number of target tokens of the whole step, so accumulation must not divide it again.
    loss_is_scaled_for_ga = True  # type: ignore[assignment]  # None in TRL, a bool or None in transformers

    def __init__(
        self, model: PreTrainedModel, args: SFTConfig, *, collator: FusionCollator, unit_lengths: np.ndarray,
        options: LossOptions, tokenizer: PreTrainedTokenizerBase,
        name_dialogues: Callable[[list[int]], list[str]] = lambda numbers: list(map(str, numbers)),
        callbacks: list[TrainerCallback] | None = None, peft_config: Any = None, pace: CheckpointPace | None = None,
        fading: Fading | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            unit_lengths: int64 [units], tokens of each unit of the collator.
            name_dialogues: ids of dialogues by number, for messages.
            pace: decides when checkpoints are written, in place of `args`.
            fading: by how much rows have faded; None: they do not.
        """
        self.options, self._unit_lengths, self._name_dialogues = options, unit_lengths, name_dialogues
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._ahead: tuple[Iterator[Any], Future[list[Any]]] | None = None
        self._sums: Tensor | None = None
        self._rotation_limit, self._pace, self._fading = args.save_total_limit, pace, fading
        args.dataset_kwargs = {"skip_prepare_dataset": True}
        args.remove_unused_columns = False
        # The empty unit, -1, stands last, where the index -1 finds it.
        units = Dataset.from_dict({"unit": np.append(np.arange(len(unit_lengths)), EMPTY_UNIT)})
        super().__init__(
            model, args, data_collator=collator, train_dataset=units, processing_class=tokenizer, callbacks=callbacks,
            peft_config=peft_config,
        )  # fmt: skip
        self.remove_callback(PrinterCallback)
        trained: Any = self.model
        fusion_head.install(trained.get_base_model() if peft_config is not None else trained, options)

    def make_sampler(self, batch_per_pass: int) -> Sampler[int]:
        """Batches in the project's own order."""
        per_pass = batch_per_pass * self.args.world_size
        global_batch = per_pass * self.args.gradient_accumulation_steps
        order = BatchOrder(
            self._unit_lengths, global_batch=global_batch, seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            strategy=str(getattr(self.args.train_sampling_strategy, "value", self.args.train_sampling_strategy)),
            fill_to=per_pass, drop_last=self.args.dataloader_drop_last,
            epoch=lambda: self.state.global_step // -(-len(order) // global_batch),
        )  # fmt: skip
        return order

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The micro-batches of one step; those of the next are read while this one is computed."""

        def read() -> list[Any]:
            return [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]

        if self._ahead is not None and self._ahead[0] is epoch_iterator:
            batches = self._ahead[1].result()
        else:
            batches = read()
        self._ahead = (epoch_iterator, self._reader.submit(read))
        return batches, self._num_target_tokens(batches, device)

    def _num_target_tokens(self, batches: list[Any], device: torch.device) -> Tensor:
        """Target tokens of one step; over all processes, unless they are to be averaged one by one."""
        count = torch.tensor(sum(len(batch[FUSION_KEY]["labels"]) for batch in batches), device=device)
        return self.accelerator.reduce(count, "sum") if self.args.average_tokens_across_devices else count

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The micro-batch's part of the loss: the sum over its target tokens, divided by those of the whole step."""
        inputs = dict(inputs)
        fusion = inputs.pop(FUSION_KEY)
        num_tokens = len(fusion["labels"]) if num_items_in_batch is None else num_items_in_batch
        # DDP and FSDP average the gradients of the processes.
        summed = self.args.average_tokens_across_devices and num_items_in_batch is not None
        scale = (self.accelerator.num_processes if summed else 1) / torch.as_tensor(num_tokens).clamp(min=1).float()
        if self.aux_loss_enabled:
            inputs["output_router_logits"] = True
        if self._fading is not None:
            factors = torch.from_numpy(self._fading.factors(fusion["dialogues"].cpu().numpy())).to(
                fusion["row_weights"]
            )
            fusion = {**fusion, "row_weights": fusion["row_weights"] * factors.repeat_interleave(fusion["num_rows"])}
        outputs = model(**inputs, fusion={**_tensors(fusion), "scale": scale.to(fusion["labels"].device)})
        loss = outputs.loss
        if not torch.isfinite(loss):
            raise FuseChatError(self._describe_bad_loss(loss.item(), fusion["dialogues"]))
        if outputs.router_loss is not None:
            loss = loss + outputs.router_loss / self.current_gradient_accumulation_steps
        self._count(outputs, fusion)
        self._observe(outputs, fusion)
        return (loss, outputs) if return_outputs else loss

    def gather(self) -> tuple[Any, dict[str, Tensor] | None]:
        """The trained model, and all its weights where a process holds only a share of them; every process calls this."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return self.model, self.accelerator.get_state_dict(self.model_wrapped)
        return self.accelerator.unwrap_model(self.model), None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the loss's parts, over all steps since the last call and over all processes."""
        if self._sums is not None:
            summed = self.accelerator.reduce(self._sums, reduction="sum")
            logs.update(describe_parts(dict(zip(PARTS + COUNTS, summed.tolist(), strict=True))))
            self._sums = None
        super().log(logs, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Left out: the stage writes its own."""

    def finish_step(self) -> None:
        """What was seen in the step changes the weights of the next one."""
        if self._fading is not None:
            self._fading.finish_step(self._sum_over_processes)

    def _sum_over_processes(self, values: np.ndarray) -> np.ndarray:
        summed: Tensor = self.accelerator.reduce(torch.from_numpy(values).to(self.accelerator.device), "sum")
        return summed.cpu().numpy()

    def go_on_from(self, checkpoint: Path) -> None:
        """Take up what a checkpoint holds beside what transformers keeps there."""
        if self._fading is not None:
            state = read_json(str(checkpoint / FADING_FILE))
            assert state is not None, f"{checkpoint} is whole and holds no {FADING_FILE}"
            self._fading.load(state)

    def wants_checkpoint(self) -> bool | None:
        """When the pace says so, but for the last step, after which the target itself is written."""
        if self._pace is None or self.state.global_step >= self.state.max_steps:
            return None
        return self._pace.due(self.accelerator)

    def write_checkpoint(self, write: Callable[[], None]) -> None:
        """Write a checkpoint aside and rename it, so that one that has its name is whole."""
        output, started = Path(str(self.args.output_dir)), time.monotonic()
        with storage_errors(output):
            write()
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                if self._fading is not None:
                    folder = output / STAGING / f"{PREFIX}{self.state.global_step}"
                    write_json(str(folder / FADING_FILE), self._fading.state())
                publish(output, self.state.global_step)
                rotate_checkpoints(output_dir=str(output), save_total_limit=self._rotation_limit)
            self.accelerator.wait_for_everyone()
        if self._pace is not None:
            self._pace.wrote(time.monotonic() - started)

    def _observe(self, outputs: Any, fusion: dict[str, Tensor]) -> None:
        """Dialogues that are met for the first time say how far the student has come."""
        if self._fading is None or (self.state.epoch or 0) >= 1:
            return
        num_rows = fusion["num_rows"]
        losses = outputs.label_losses.new_zeros(len(num_rows), dtype=torch.float64)
        place = torch.repeat_interleave(num_rows)
        losses.index_add_(0, place, outputs.label_losses.detach().to(torch.float64))
        self._fading.observe(*(values.cpu().numpy() for values in (fusion["dialogues"], losses, num_rows)))

    def _count(self, outputs: Any, fusion: dict[str, Tensor]) -> None:
        counts = (
            torch.tensor(len(fusion["labels"])), fusion["source_share"].sum(),
            (fusion["row_weights"] * torch.isfinite(fusion["topk_logprobs"]).any(dim=1)).sum(),
            torch.tensor(len(fusion["dialogues"])), fusion["without_source"],
        )  # fmt: skip
        parts = [getattr(outputs, name).detach() for name in PARTS]
        sums = torch.stack([value.to(outputs.loss.device, torch.float64) for value in (*parts, *counts)])
        self._sums = sums if self._sums is None else self._sums + sums

    def _describe_bad_loss(self, loss: float, dialogues: Tensor) -> str:
        names = ", ".join(self._name_dialogues(dialogues.tolist()))
        return (
            f"step {self.state.global_step + 1}: the loss is {loss}, on dialogues {names}; expected a "
            "finite loss: look at these dialogues, lower training.trl.learning_rate, or train in float32"
        )


def sft_config(arguments: dict[str, Any]) -> SFTConfig:
    """TRL's configuration.

    Raises:
        ConfigError: a field that it does not have, or a value that it refuses.
    """
    valid = {field.name for field in dataclasses.fields(SFTConfig) if field.init}
    for name in arguments.keys() - valid:
        near = difflib.get_close_matches(name, sorted(valid), n=1)
        raise ConfigError(
            f"training.trl.{name}: no such field of SFTConfig" + (f"; did you mean {near[0]!r}?" if near else "")
        )
    try:
        config = SFTConfig(**arguments)
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"training.trl: {error}") from error
    if config.deepspeed_plugin is not None and config.deepspeed_plugin.zero_stage == 3:
        raise ConfigError(
            "training.trl.deepspeed: found ZeRO stage 3, expected at most 2; to shard the weights use FSDP2"
        )
    return config


def _tensors(fusion: dict[str, Tensor]) -> dict[str, Tensor]:
    names = ("hidden_index", "labels", "topk_ids", "topk_logprobs", "row_weights", "label_weights")
    return {name: fusion[name] for name in names if name in fusion}
