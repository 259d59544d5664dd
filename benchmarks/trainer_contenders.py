"""What `benchmarks/bench_trainer.py` compares: four trainers on the same batches of real dialogues with real rows."""

import argparse
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from trl import SFTConfig, SFTTrainer

from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens import Tokens
from fusechat.storage.tokens_reader import TokensReader
from fusechat.text.chat_template import load_tokenizer
from fusechat.text.dialogues import read_dialogues
from fusechat.text.tokenization import tokenize_dialogues
from trainer.collator import FUSION_KEY, FusionCollator
from trainer.fusion_dataset import FusionDataset
from trainer.fusion_trainer import FusionTrainer
from trainer.losses import LossOptions

DEVICE = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
CONTENDERS = ("sft", "fusion", "fusion_off", "dense")
STEPS = 2
"""Steps of one turn: the first allocates, the second is timed."""
FSDP2: dict[str, Any] = {
    "fsdp": True,
    "fsdp_config": {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "reshard_after_forward": True},
}
"""Of SFTConfig, where torch's launcher started the process."""
NOISE = 0.02
"""What is added to the pivot's weights, in their standard deviations, to have another model for a source."""


def make_stores(folder: Path, arguments: argparse.Namespace) -> None:
    """Dialogues laid end to end and cut to `arguments.tokens`, the pivot's rows of them, and those of a neighbour of it."""
    tokens = _read_tokens(arguments)
    tokens.write(str(folder / "tokens"))
    layout = tokens.layout(arguments.tokens * 8)
    model: Any = AutoModelForCausalLM.from_pretrained(arguments.model, dtype="float32")
    model.to(DEVICE)
    for name, kind in (("pivot", "logprobs"), ("source", "aligned")):
        store = RowStore.create(
            str(folder / name),
            kind,
            layout,
            k=arguments.k,
            vocab_size=tokens.attributes["vocab_size"],
            logprob_step=1 / 32,
            settings={},
        )
        for shard in range(layout.num_shards):
            arrays = [_rows_of(model, tokens, dialogue, arguments.k) for dialogue in layout.dialogues(shard)]
            joined = {key: np.concatenate([array[key] for array in arrays]) for key in arrays[0]}
            if kind == "aligned":
                joined["kind"] = np.full(len(joined["label_logprob"]), 2, np.uint8)
            store.write_shard(shard, joined)
        _add_noise(model)


def _read_tokens(arguments: argparse.Namespace) -> Tokens:
    tokenizer, template = load_tokenizer(str(arguments.model))
    dialogues, wanted = read_dialogues(arguments.dialogues), arguments.batch * STEPS * arguments.tokens
    parts: list[Any] = []
    for part in tokenize_dialogues(tokenizer, template, dialogues):
        parts.append(part)
        if sum(len(each.token_ids) for each in parts) >= wanted:
            break
    else:
        raise SystemExit(f"{arguments.dialogues}: too few dialogues for {wanted} tokens; give more, or lower --batch")
    token_ids = np.concatenate([part.token_ids for part in parts])[:wanted]
    is_scored = np.concatenate([part.is_scored for part in parts])[:wanted]
    is_scored[:: arguments.tokens] = False
    spans = np.full((wanted, 2), -1, np.int32)
    vocab_size = transformers.AutoConfig.from_pretrained(arguments.model).get_text_config().vocab_size
    offsets = np.arange(0, wanted + 1, arguments.tokens, dtype=np.int64)
    return Tokens.of_contents(token_ids, is_scored, spans, offsets, {"vocab_size": vocab_size})


@torch.no_grad()
def _rows_of(model: PreTrainedModel, tokens: Tokens, dialogue: int, k: int) -> dict[str, np.ndarray]:
    where = tokens.tokens_of(dialogue)
    ids = torch.from_numpy(tokens.token_ids[where].astype(np.int64)).to(DEVICE)
    positions = torch.from_numpy(np.flatnonzero(tokens.is_scored[where])).to(DEVICE)
    hidden = model.base_model(input_ids=ids[None]).last_hidden_state[0, positions - 1]
    logprobs = torch.log_softmax(model.get_output_embeddings()(hidden).float(), dim=-1)
    top = logprobs.topk(k)
    narrow = np.uint16 if logprobs.shape[1] <= 65_536 else np.uint32
    return {
        "topk_ids": top.indices.cpu().numpy().astype(narrow),
        "topk_logprobs": top.values.cpu().numpy(),
        "label_logprob": logprobs.gather(1, ids[positions, None]).squeeze(1).cpu().numpy(),
    }


@torch.no_grad()
def _add_noise(model: PreTrainedModel) -> None:
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * parameter.std() * NOISE)


def open_dataset(stores: Path, max_tokens: int, choice: Any = "min_ce") -> FusionDataset:
    """The stores as training reads them."""
    return FusionDataset(
        TokensReader(str(stores / "tokens")), choice=choice, max_tokens=max_tokens,
        pivot_rows=RowStore.open(str(stores / "pivot"), "logprobs"),
        source_rows=RowStore.open(str(stores / "source"), "aligned"),
    )  # fmt: skip


class SftCollator:
    """The same batches as plain SFT inputs."""

    def __init__(self, collator: FusionCollator) -> None:
        self._collator = collator

    def __call__(self, features: list[dict[str, int]]) -> dict[str, Any]:
        batch: dict[str, Any] = dict(self._collator(features))
        fusion = batch.pop(FUSION_KEY)
        labels = torch.full_like(batch["input_ids"], -100)
        labels.view(-1)[fusion["hidden_index"] + 1] = fusion["labels"]
        return {**batch, "labels": labels}


class DenseTrainer(SFTTrainer):
    """The released construction: all logits, and two targets [batch, tokens, V] in bfloat16, the smaller loss's one kept."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        fusion = inputs[FUSION_KEY]
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
        batch, tokens, vocab_size = logits.shape
        targets = [torch.zeros(batch, tokens, vocab_size, dtype=torch.bfloat16, device=logits.device) for _ in range(2)]
        for target in targets:
            chosen = fusion["topk_logprobs"].exp() / fusion["topk_logprobs"].exp().sum(1, keepdim=True)
            target.view(-1, vocab_size)[fusion["hidden_index"]] = torch.zeros(
                len(chosen), vocab_size, dtype=torch.bfloat16, device=logits.device
            ).scatter_add_(1, fusion["topk_ids"], chosen.bfloat16())
        first = torch.ones(batch, 1, 1, dtype=torch.bool, device=logits.device)
        chosen_target = torch.where(first, targets[0], targets[1])
        labels = torch.full((batch * tokens,), -100, device=logits.device)
        labels[fusion["hidden_index"]] = fusion["labels"]
        count = len(fusion["labels"])
        log_q = torch.log_softmax(logits.float(), dim=-1)
        sft = nn.functional.nll_loss(log_q.view(-1, vocab_size), labels, reduction="sum") / count
        mask = (labels != -100).view(batch, tokens)
        return 0.9 * sft + 0.1 * (-(chosen_target * log_q).sum(-1) * mask).sum() / count


def make_trainer(name: str, model: PreTrainedModel, stores: Path, arguments: argparse.Namespace) -> SFTTrainer:
    """One contender; `fusion_off` is our trainer without rows."""
    data = open_dataset(stores, arguments.tokens, "none" if name == "fusion_off" else "min_ce")
    units = [np.array([dialogue]) for dialogue in range(len(data))]
    collator = FusionCollator(data, units, pad_token_id=0)
    config = SFTConfig(
        output_dir=str(stores / "out"), per_device_train_batch_size=arguments.batch, max_steps=STEPS, save_strategy="no",
        bf16=True, use_cpu=DEVICE.type == "cpu", gradient_checkpointing=arguments.gradient_checkpointing, report_to="none",
        disable_tqdm=True, dataloader_pin_memory=False, train_sampling_strategy="sequential", remove_unused_columns=False,
        learning_rate=5e-6, logging_steps=1000, dataset_kwargs={"skip_prepare_dataset": True},
        **(FSDP2 if torch.distributed.is_torchelastic_launched() else {}),
    )  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    if name in ("fusion", "fusion_off"):
        return FusionTrainer(
            model, config, collator=collator, unit_lengths=data.lengths(), options=LossOptions(), tokenizer=tokenizer
        )
    rows = datasets.Dataset.from_dict({"unit": list(range(len(units)))})
    kind, collate = (SFTTrainer, SftCollator(collator)) if name == "sft" else (DenseTrainer, collator)
    trainer = kind(model, config, data_collator=collate, train_dataset=rows, processing_class=tokenizer)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer
