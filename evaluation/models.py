"""Which models a run measures, and how one of them is loaded: a run in, names, folders, fingerprints and networks out.

Knows nothing about what is measured.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from fusechat.config import CONTROL, JOINT, RunConfig
from fusechat.config.round_run import round_runs
from fusechat.errors import ModelError
from fusechat.models import model_files
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact


@dataclass(frozen=True)
class MeasuredModel:
    """One model of a run: `role` is pivot, sft, target, fused, round or source; `name` the short name that the run file gives,
    or the round's number.
    """

    role: str
    name: str
    folder: Path
    fingerprint: str
    """Of the artifact, or of the files of a model that came from elsewhere."""
    reader: str
    """Whose tokenizer, template and tokens artifact it reads: the pivot's name or the source's."""
    artifact: Artifact | None = None
    """The artifact of a target or the fused model."""

    @property
    def id(self) -> str:
        """As in `evaluation.models`; also a file name."""
        return f"{self.role}.{self.name}" if self.role in ("target", "round", "source") else self.role

    @property
    def label(self) -> str:
        """What people read."""
        return {"sft": "SFT-only (sft)", "fused": "fused"}.get(self.role, f"{self.role} {self.name}")


def measured_models(config: RunConfig) -> list[MeasuredModel]:
    """The models to measure: pivot, control, targets, fused model, the rounds' students, sources, in this order.

    Raises:
        ArtifactError: a target or the fused model is not finished.
        ModelError: a pivot or source that is not there.
    """
    return [_measured_model(config, model_id) for model_id in config.measured_ids]


def _measured_model(config: RunConfig, model_id: str) -> MeasuredModel:
    role, _, name = model_id.partition(".")
    pivot = config.pivot.name
    if role in ("pivot", "source"):
        section = config.pivot if role == "pivot" else config.model_named(name)
        folder = model_files.resolve_model(section)
        digest = model_files.text_digest(str(model_files.digests(folder, config.digests_path)))
        return MeasuredModel(role, section.name, folder, digest, section.name)
    if role == "round":
        folder = round_runs(config)[int(name) - 1].target_path(JOINT)
    else:
        folder = config.fused_path if role == "fused" else config.target_path(name or CONTROL)
    made = artifact.load(folder, "fused" if role == "fused" else "target")
    return MeasuredModel(role, name or role, folder, made.fingerprint, pivot, made)


def resolved_dtype(dtype: str) -> str:
    """The dtype that `evaluation.held_out.dtype` means on this machine.

    On a CPU with avx512_bf16 the body of SmolLM2-135M read 380 tokens a second of one core's time in float32 and 265 in
    bfloat16, whose rounding also moved the mean loss by 0.0007 nats a token.
    """
    if dtype != "auto":
        return dtype
    return "auto" if torch.cuda.is_available() else "float32"


def load_network(model: MeasuredModel, dtype: str) -> PreTrainedModel:
    """The model's network, on the GPUs if there are any.

    Raises:
        ModelError: it cannot be loaded.
    """
    transformers.utils.logging.disable_progress_bar()
    placement = {"device_map": "auto"} if torch.cuda.is_available() else {}
    try:
        network: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            model.folder, dtype=resolved_dtype(dtype), **placement
        ).eval()
        return network
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"{model.label}: {model.folder} cannot be loaded ({str(error).splitlines()[0]}); "
            "expected a Hugging Face folder of a causal language model"
        ) from error


@contextmanager
def memory_errors(model: MeasuredModel) -> Iterator[None]:
    """Turn a GPU memory that is too small into one clear ModelError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        way_out = "leave the sources out (evaluation.sources: false)" if model.role == "source" else "use larger GPUs"
        raise ModelError(
            f"{model.label}: the GPU's memory does not hold it ({str(error).splitlines()[0]}); "
            f"lower evaluation.held_out.batch_tokens, or {way_out}"
        ) from None
