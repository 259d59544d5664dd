"""One measured model at the harness: a task in, its figures out, in a file that the driver joins with the others.

The harness asks the network itself, by transformers, on the GPUs that the worker reserved.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusechat.config import ModelSection
from fusechat.errors import ModelError, first_line
from fusechat.models import model_files
from fusechat.models.process_memory import give_memory_back, without_garbage_collection
from fusechat.storage.files import write_json
from fusechat.storage.tokens_reader import TokensReader
from fusechat.storage.work import HERE, Place
from fusechat.text.chat_template import load_tokenizer
from fusechat.text.rendered import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = 8
"""Requests of one batch of the harness."""


@dataclass(frozen=True)
class HarnessInputs:
    """All that the worker of one measured model is told."""

    model: ModelSection
    """Its folder is looked up where the worker stands; its engine's dtype is the network's."""
    reader: ModelSection
    """The model of the run whose tokenizer and template it reads with."""
    tokens_url: str
    """The reader's tokens, which say what template they were made under."""
    folder: str
    """Where the figures go."""
    tasks: tuple[str, ...]
    """The number of a unit is that of a task."""
    task_folder: str | None
    limit: int | None
    seed: int
    unsafe_code: bool

    def path(self, unit: int) -> str:
        """Where a task's figures stand."""
        return f"{self.folder}/parts/{unit}.json"


class HarnessWorker:
    """Runs tasks with one model."""

    def __init__(self, inputs: HarnessInputs, place: Place = HERE) -> None:
        self.inputs = inputs
        self._network: PreTrainedModel | None = None

    def start(self) -> dict[str, Any]:
        """Load the network, on the GPUs if there are any.

        Raises:
            ModelError: it cannot be loaded.
        """
        started, inputs = time.monotonic(), self.inputs
        attributes = TokensReader(inputs.tokens_url).attributes
        self._template = ChatTemplate.from_attributes(attributes)
        reader = str(model_files.resolve_model(inputs.reader))
        self._tokenizer, _ = load_tokenizer(reader, template=self._template.text)
        self._network = load_network(inputs.model)
        return {"seconds": time.monotonic() - started}

    def run_unit(self, unit: int) -> dict[str, Any]:
        """Run one task and write its figures.

        Returns:
            units (1) and seconds.
        """
        from .tasks import run_tasks

        started, inputs = time.monotonic(), self.inputs
        figures = run_tasks(
            self._network, self._tokenizer, self._template, tasks=[inputs.tasks[unit]],
            folder=None if inputs.task_folder is None else Path(inputs.task_folder), limit=inputs.limit, batch_size=BATCH,
            seed=inputs.seed, unsafe_code=inputs.unsafe_code,
        )  # fmt: skip
        write_json(inputs.path(unit), figures)
        return {"units": 1, "seconds": time.monotonic() - started}

    def close(self) -> None:
        """Let the network go; the process may serve another work."""
        self._network = None
        give_memory_back()


def load_network(model: ModelSection) -> "PreTrainedModel":
    """A causal language model by transformers, over all GPUs that the process sees, else on the CPU.

    Raises:
        ModelError: it cannot be loaded.
    """
    with without_garbage_collection():  # transformers: 1.4 s of 5.2
        import torch
        import transformers
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM

    transformers.utils.logging.disable_progress_bar()
    has_gpus = torch.cuda.is_available()
    dtype = model.engine.dtype if model.engine.dtype != "auto" or has_gpus else "float32"
    placement = {"device_map": "auto"} if has_gpus else {}
    folder = model_files.resolve_model(model)
    try:
        network: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **placement).eval()
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"{model.name}: {folder} cannot be loaded ({first_line(error)}); expected a Hugging Face folder of a causal "
            "language model"
        ) from error
    return network
