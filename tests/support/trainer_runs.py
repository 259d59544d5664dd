"""A run folder that has everything training reads, made without any other stage: random dialogues, random rows."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
import yaml
from safetensors.torch import load_file

from fusechat.config import RunConfig
from fusechat.models import model_files
from fusechat.models.digests import digests_of
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact
from fusechat.storage.contracts import RowKind
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens import Tokens
from fusechat.storage.tokens_reader import read_tokens
from fusechat.text.rendered import ChatTemplate
from trainer.run_log import read_metrics

K = 5
NAMES = ("other", "third")
"""The sources of `make_chosen_run`."""
PUBLISHED = {"row_choice": "min_ce", "sft_weight": 0.9, "tail": "renormalise"}
"""FuseLLM's choice with FuseChat's weight, which the figures of these tests are of."""


@contextmanager
def stopped_at(step: int) -> Iterator[None]:
    """Training in a `with` block is interrupted at a step."""
    from trainer.fusion_trainer import FusionTrainer  # TRL: seconds

    whole = FusionTrainer.compute_loss

    def stop(self: FusionTrainer, *arguments: Any, **keywords: Any) -> Any:
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return whole(self, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FusionTrainer, "compute_loss", stop)
        yield


def make_run(
    folder: Path, *, dialogues: int = 22, trl: dict | None = None, seed: int = 0, **training: object
) -> RunConfig:
    """Write the pivot, its tokens and rows, and a source's aligned rows; run.yaml lies beside them."""
    model = tiny_models.save_llama(folder / "pivot")
    arguments = {
        "num_train_epochs": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "learning_rate": 1e-3,
        "gradient_checkpointing": False, "bf16": False, **(trl or {}),
    }  # fmt: skip
    config = RunConfig.model_validate(
        {
            "run": {"output": str(folder / "run"), "seed": seed},
            "pivot": {"name": "pivot", "model": str(model)},
            "sources": [{"name": "other", "model": str(model)}],
            "dialogues": {"train": ["dialogues.jsonl"], "max_tokens": 48},
            "training": {"trl": arguments, **PUBLISHED, **training},
        }
    )
    tokens = random_tokens(dialogues, model, seed)
    made = _write(config.tokens_url("pivot"), "tokens", {})
    tokens.write(config.tokens_url("pivot"))
    write_rows(config.logprobs_url("pivot"), "logprobs", tokens, {"tokens": made}, seed)
    write_rows(config.logprobs_url("other"), "logprobs", tokens, {"tokens": made}, seed + 1)
    write_rows(config.aligned_url("other"), "aligned", tokens, {"tokens": made}, seed + 2)
    config.dialogues_path.mkdir(parents=True)
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    lines = [json.dumps({"id": f"dialogue-{number}", "messages": messages}) for number in range(dialogues)]
    (config.dialogues_path / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "run.yaml").write_text(yaml.safe_dump(config.dump()), encoding="utf-8")
    return config


def make_chosen_run(folder: Path, **training: object) -> RunConfig:
    """Random rows of two sources: `other` is good at the first half of the dialogues, `third` at three of the second."""
    config = make_run(folder, row_choice="trusted", sft_weight=0.1, tail="bucket", **training)
    document = config.dump()
    document["sources"].append({**document["sources"][0], "name": "third"})
    config = RunConfig.model_validate(document)
    tokens = read_tokens(config.tokens_url("pivot"))
    made = artifact.load(config.tokens_url("pivot"), "tokens")
    write_rows(config.aligned_url("third"), "aligned", tokens, {"tokens": made}, 7)
    for name, better in zip(NAMES, (range(11), range(12, 15)), strict=True):
        _improve(RowStore.open(config.aligned_url(name), "aligned", mode="r+"), better)
    (folder / "run.yaml").write_text(yaml.safe_dump(config.dump()), encoding="utf-8")
    return config


def _improve(store: RowStore, dialogues: range) -> None:
    """The source's label loss becomes small on some dialogues."""
    for shard, arrays in store.iter_shards():
        first = store.layout.rows(shard).start
        for dialogue in store.layout.dialogues(shard):
            rows = slice(*(int(edge) - first for edge in store.layout.row_offsets[dialogue : dialogue + 2]))
            real = (arrays["kind"][rows] != RowKind.EMPTY) & (dialogue in dialogues)
            arrays["label_logprob"][rows] = np.where(real, -0.25, arrays["label_logprob"][rows])
            arrays["kind"][rows] = np.where(real, RowKind.MAPPED, arrays["kind"][rows])
        store.write_shard(shard, arrays)


def random_tokens(dialogues: int, model: Path, seed: int = 0) -> Tokens:
    """Dialogues of 6 to 40 tokens, the last two thirds of each its targets."""
    random = np.random.default_rng(seed)
    vocab_size = int(model_files.read_model_config(model)["vocab_size"])
    lengths = random.integers(6, 41, dialogues)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    is_scored = np.concatenate([np.arange(length) >= length // 3 for length in lengths])
    return Tokens.of_contents(
        token_ids=random.integers(4, vocab_size, offsets[-1]).astype(np.int32),
        is_scored=is_scored,
        span=np.full((int(offsets[-1]), 2), -1, np.int32),
        offsets=offsets,
        attributes={
            "vocab_size": vocab_size, **ChatTemplate(tiny_models.CHATML).to_attributes(), "dialogues_digest": "0",
            "tokenizer": digests_of(model)["tokenizer"],
        },
    )  # fmt: skip


def write_rows(url: str, kind: str, tokens: Tokens, parents: dict[str, Artifact], seed: int) -> RowStore:
    """A finished store of random rows; aligned ones have every kind, and dialogue 3 has none at all."""
    random = np.random.default_rng(seed)
    vocab_size = tokens.attributes["vocab_size"]
    layout = tokens.layout(300)
    store = RowStore.create(url, kind, layout, k=K, vocab_size=vocab_size, logprob_step=1 / 32, settings={"seed": seed})
    for shard in range(layout.num_shards):
        rows = layout.rows(shard)
        count = rows.stop - rows.start
        mass = np.sort(random.dirichlet(np.ones(K + 1), count)[:, :K])[:, ::-1]
        arrays = {
            "topk_ids": np.stack([random.permutation(vocab_size)[:K] for _ in range(count)]).astype(np.uint16),
            "topk_logprobs": np.log(mass).astype(np.float32),
            "label_logprob": -random.gamma(2, 1, count).astype(np.float32),
        }
        if kind == "aligned":
            arrays["kind"] = random.integers(0, 6, count).astype(np.uint8)
            third = tokens.row_offsets[3:5] - rows.start
            arrays["kind"][max(third[0], 0) : max(third[1], 0)] = 0
            arrays["topk_logprobs"][arrays["kind"] == 0] = -np.inf
            arrays["label_logprob"][arrays["kind"] == 0] = np.nan
        store.write_shard(shard, arrays)
    _write(url, kind, parents, settings={"seed": seed})
    return store


def _write(url: str, kind: str, parents: dict[str, Artifact], settings: dict | None = None) -> Artifact:
    return artifact.claim(url, kind, settings=settings or {}, parents=parents).finish({})


def losses(config: RunConfig, name: str = "other") -> list[float]:
    """Of every logged step."""
    return [record["loss"] for record in read_metrics(config.target_path(name))]


def weights(config: RunConfig, name: str = "other") -> dict[str, torch.Tensor]:
    """Of a finished target."""
    return load_file(config.target_path(name) / "model.safetensors")
