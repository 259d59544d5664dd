"""Sections of the run file: where a run lives, and what tokenizing, extraction, alignment and merging go by.

The larger sections have files of their own: models, training, writing, rounds, evaluation, cluster, serve.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from .paths import FolderPath, PathText
from .section import Section

Capture = Literal["topk_pooler", "prompt_logprobs"]
"""How an engine gives rows (docs/capture.md)."""


class RunSection(Section):
    """Where a run lives."""

    output: FolderPath = Path("runs/run")
    """Folder of the run: models, reports, logs; on a filesystem that all nodes share."""
    store: PathText | None = None
    """URL (`s3://`, `gs://`) or folder of the tokens, logprobs and aligned stores; default: the run's folder."""
    seed: int = 0
    """Seed of everything random."""
    if_changed: Literal["refuse", "restart"] = "refuse"
    """What to do with artifacts that another recipe made: refuse and show the difference, or delete them and start afresh."""


class DialoguesSection(Section):
    """What the models read."""

    train: list[PathText] = []
    """Files or dataset folders: JSONL, ShareGPT JSON, Parquet, a saved Hugging Face dataset (`folder::split`), or one of the hub
    (`hub:OWNER/NAME::split`, `hub:OWNER/NAME/CONFIG@REVISION::split`). May be left out where there are prompts."""
    prompts: list[PathText] = []
    """Files of prompts, in any form of questions (`.txt`, `prompt`, `instruction`, ...) or of dialogues, whose last answer is
    then a reference; the writers answer them (`writing`), and the answers that are kept are read beside `train`."""
    held_out: list[PathText] = []
    """Files of held-out dialogues; if empty, `held_out_share` of the training dialogues is held out by the hash of the messages."""
    held_out_share: float = Field(0.02, ge=0, lt=1)
    """Share of the dialogues held out where no file is given."""
    max_tokens: int = Field(2048, ge=16)
    """Longest dialogue in the pivot's tokens; a longer one is cut after its last whole turn that fits."""
    on_bad: Literal["refuse", "skip"] = "refuse"
    """A dialogue that breaks the rules ends the run, or is left out, counted and listed."""
    ignore_keys: list[str] = []
    """Keys of rows, messages and tool calls that are left unread on purpose; any other key of a message that FuseChat does
    not know is refused, and a column of a row that it does not know is counted and named."""
    on_overlap: Literal["refuse", "keep"] = "refuse"
    """Held-out dialogues that are also training dialogues end the run, or are kept, named in the record and in the report."""


class ExtractionSection(Section):
    """How the teachers score."""

    k: int = Field(10, ge=1, le=1024)
    """Tokens kept per row."""
    capture: Capture = "topk_pooler"
    """The project's own top-k pooler, or vLLM's public prompt logprobs (the reference; slower)."""
    shard_tokens: int = Field(131_072, ge=64)
    """Tokens of one shard, the unit of work and of resumption."""
    self_check_dialogues: int = Field(4, ge=0)
    """Dialogues that each teacher scores against a plain transformers forward before it may write; 0: none."""
    logprob_step: float = Field(1 / 32, gt=0, le=0.25)
    """Grid on which top-k logprobs are stored, nats."""


class AlignmentSection(Section):
    """How source rows become pivot rows."""

    token_rule: Literal["span", "released"] = "span"
    """Byte spans (exact, linear in the text), or the released code's dynamic time warping."""
    vocabulary_rule: Literal["frequency", "released", "min_edit", "exact"] = "frequency"
    """How a source id is mapped to a pivot id."""
    row_rule: Literal["chain", "map"] = "chain"
    """Chain rule over the bytes (the label's probability and rows inside a source token are exact), or the plain map of each row."""


class MergeSection(Section):
    """How the targets become the fused model."""

    method: str = "sce"
    """A name of `merge.methods`."""
    parameters: dict[str, Any] = {}
    """The method's own parameters."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Dtype of the fused weights; auto: the pivot's."""
    threads: int | None = Field(None, ge=1)
    """Threads of the merge; default: one per core, and on a cluster four per worker."""
    max_shard_bytes: int = Field(5 * 10**9, ge=1)
    """Largest file of the fused model, bytes (a single tensor may exceed it)."""
