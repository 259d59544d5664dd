# ruff: noqa: E402
"""What a fusion step costs: against TRL's own SFT step, and against the dense construction of the released trainer.

    python benchmarks/trainer.py [--model FOLDER] [--batch 4] [--tokens 512] [--rounds 3] [--out FOLDER]

Every round trains two steps with each contender in turn, on the same batches; the second step is timed, forward,
backward and optimizer. Peak memory is that of a process which trains with one contender alone. The last line is one
JSON object. Runs on a CPU, or on a GPU where there is one.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

# This file is called like a package of ours, which it would hide as long as its own folder is searched first.
sys.path[0] = str(Path(__file__).parents[1])

from fusechat.store import RowStore
from fusechat.tokens import Tokens
from trainer.collator import FUSION_KEY, FusionCollator
from trainer.fused_loss import LossOptions, fused_linear_fusion_sums
from trainer.fusion_dataset import FusionDataset
from trainer.fusion_trainer import FusionTrainer

DEVICE = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
CONTENDERS = ("sft", "fusion", "fusion_off", "dense")
K = 10
STEPS = 2


def load_model(folder: Path | None, dtype: str) -> PreTrainedModel:
    """The model, or without a folder random weights in SmolLM2-135M's shape."""
    if folder is not None:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    config = LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, max_position_embeddings=8192, rope_theta=100_000.0,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(getattr(torch, dtype))


def make_stores(folder: Path, model: PreTrainedModel, dialogues: int, tokens: int) -> None:
    """Dialogues of `tokens` tokens, 61 % of them targets as in real ones, and the model's own top-k rows for them."""
    random = np.random.default_rng(0)
    vocab_size = model.config.get_text_config().vocab_size
    length = dialogues * tokens
    is_target = np.tile(np.arange(tokens) >= round(0.39 * tokens), dialogues)
    artifact = Tokens(
        random.integers(0, vocab_size, length).astype(np.int32),
        is_target,
        np.full((length, 2), -1, np.int32),
        np.arange(0, length + 1, tokens, dtype=np.int64),
        {"vocab_size": vocab_size},
    )
    artifact.write(str(folder / "tokens"))
    plan = artifact.plan(tokens * 8)
    for name, kind in (("pivot", "logprobs"), ("source", "aligned")):
        store = RowStore.create(
            str(folder / name), kind, plan, k=K, vocab_size=vocab_size, logprob_step=1 / 32, settings={}
        )
        for shard in range(plan.num_shards):
            arrays = [_rows_of(model, artifact, dialogue) for dialogue in plan.dialogues(shard)]
            joined = {key: np.concatenate([array[key] for array in arrays]) for key in arrays[0]}
            if kind == "aligned":
                joined["kind"] = np.full(len(joined["label_logprob"]), 2, np.uint8)
                joined["label_logprob"] = joined["label_logprob"] + random.normal(0, 0.1, len(joined["kind"])) - 0.5
                joined["label_logprob"] = np.minimum(joined["label_logprob"], 0).astype(np.float32)
            store.write_shard(shard, joined)


@torch.no_grad()
def _rows_of(model: PreTrainedModel, tokens: Tokens, dialogue: int) -> dict[str, np.ndarray]:
    where = tokens.tokens_of(dialogue)
    ids = torch.from_numpy(tokens.token_ids[where].astype(np.int64))
    positions = torch.from_numpy(np.flatnonzero(tokens.is_target[where]))
    hidden = model.base_model(input_ids=ids[None]).last_hidden_state[0, positions - 1]
    logprobs = torch.log_softmax(model.get_output_embeddings()(hidden).float(), dim=-1)
    top = logprobs.topk(K)
    narrow = np.uint16 if logprobs.shape[1] <= 65_536 else np.uint32
    return {
        "topk_ids": top.indices.numpy().astype(narrow),
        "topk_logprobs": top.values.numpy(),
        "label_logprob": logprobs.gather(1, ids[positions, None]).squeeze(1).numpy(),
    }


class StepTimer(TrainerCallback):
    """Seconds of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = _now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(_now() - self._began)


class SftCollator:
    """The same batches as plain SFT inputs."""

    def __init__(self, collator: FusionCollator) -> None:
        self._collator = collator

    def __call__(self, features: list[dict[str, int]]) -> dict[str, Any]:
        batch = self._collator(features)
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
        target = torch.where(torch.ones(batch, 1, 1, dtype=torch.bool, device=logits.device), *targets)
        labels = torch.full((batch * tokens,), -100, device=logits.device)
        labels[fusion["hidden_index"]] = fusion["labels"]
        count = len(fusion["labels"])
        log_q = torch.log_softmax(logits.float(), dim=-1)
        sft = nn.functional.nll_loss(log_q.view(-1, vocab_size), labels, reduction="sum") / count
        mask = (labels != -100).view(batch, tokens)
        return 0.9 * sft + 0.1 * (-(target * log_q).sum(-1) * mask).sum() / count


def make_trainer(name: str, model: PreTrainedModel, stores: Path, arguments: argparse.Namespace) -> SFTTrainer:
    """One contender; `fusion_off` is our trainer without rows."""
    data = FusionDataset(
        Tokens.read(str(stores / "tokens")),
        choice="none" if name == "fusion_off" else "min_ce",
        max_tokens=arguments.tokens,
        pivot_rows=RowStore.open(str(stores / "pivot"), "logprobs"),
        source_rows=RowStore.open(str(stores / "source"), "aligned"),
    )
    units = [np.array([dialogue]) for dialogue in range(len(data))]
    collator = FusionCollator(data, units, pad_token_id=0)
    config = SFTConfig(
        output_dir=str(stores / "out"), per_device_train_batch_size=arguments.batch, max_steps=STEPS, save_strategy="no",
        bf16=True, use_cpu=DEVICE.type == "cpu", gradient_checkpointing=arguments.gradient_checkpointing, report_to="none",
        disable_tqdm=True, dataloader_pin_memory=False, train_sampling_strategy="sequential", remove_unused_columns=False,
        learning_rate=5e-6, logging_steps=1000, dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    tokenizer = _tokenizer(model)
    if name in ("fusion", "fusion_off"):
        return FusionTrainer(
            model, config, collator=collator, unit_lengths=data.lengths, options=LossOptions(), tokenizer=tokenizer
        )
    import datasets

    rows = datasets.Dataset.from_dict({"unit": list(range(len(units)))})
    kind, collate = (SFTTrainer, SftCollator(collator)) if name == "sft" else (DenseTrainer, collator)
    trainer = kind(model, config, data_collator=collate, train_dataset=rows, processing_class=tokenizer)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _tokenizer(model: PreTrainedModel) -> Any:
    from tokenizers import Tokenizer, models

    words = {f"w{number}": number for number in range(8)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w1", pad_token="w2")
    fast.bos_token_id = model.config.bos_token_id
    return fast


def measure_steps(model: PreTrainedModel, stores: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Contender -> median seconds of a step, from alternating runs."""
    trainers = {name: make_trainer(name, model, stores, arguments) for name in CONTENDERS}
    timers = {name: StepTimer() for name in CONTENDERS}
    for name, trainer in trainers.items():
        trainer.add_callback(timers[name])
    for _ in range(arguments.rounds):
        for name, trainer in trainers.items():
            trainer.train()
            print(f"{name}: {timers[name].seconds[-1]:.2f} s", file=sys.stderr, flush=True)
    return {name: float(np.median(timer.seconds[STEPS - 1 :: STEPS])) for name, timer in timers.items()}


def measure_peak(name: str, stores: Path, arguments: argparse.Namespace) -> int:
    """Bytes at the peak of a process that trains with this contender alone."""
    command = [sys.executable, __file__, "--peak-of", name, "--stores", str(stores), *sys.argv[1:]]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(output.split()[-1])


class _Flops(TorchDispatchMode):
    """Floating point operations of matrix products."""

    total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function._schema.name in ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm"):
            left, right = [value for value in args if isinstance(value, Tensor)][-2:]
            self.total += 2 * left.numel() * right.shape[-1]
        return result


def measure_loss(vocab_size: int, hidden_size: int, tokens: int) -> dict[str, float]:
    """The loss alone, forward and backward: seconds and FLOPs, ours against TRL's chunked log-probabilities and dense."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, hidden_size, generator=generator).to(DEVICE, torch.bfloat16).requires_grad_()
    weight = (
        (torch.randn(vocab_size, hidden_size, generator=generator) * 0.02).to(DEVICE, torch.bfloat16).requires_grad_()
    )
    labels = torch.randint(0, vocab_size, (tokens,), generator=generator).to(DEVICE)
    ids = torch.randint(0, vocab_size, (tokens, K), generator=generator).to(DEVICE)
    rows = torch.log_softmax(torch.randn(tokens, K, generator=generator), 1).to(DEVICE)

    def ours() -> Tensor:
        return fused_linear_fusion_sums(hidden, weight, labels, ids, rows, LossOptions(), scale=1 / tokens).loss

    def trl_sft() -> Tensor:
        outputs = ("log_probs", "entropy", "is_top1")
        return -ChunkedLogProbFunction.apply(hidden, weight, None, labels, 1.0, 32_768, None, 1.0, outputs)[0].mean()

    def dense() -> Tensor:
        log_q = torch.log_softmax((hidden @ weight.t()).float(), dim=-1)
        target = torch.zeros_like(log_q, dtype=torch.bfloat16).scatter_add_(1, ids, rows.exp().bfloat16())
        return -0.9 * log_q.gather(1, labels[:, None]).mean() - 0.1 * (target * log_q).sum(-1).mean()

    found: dict[str, float] = {}
    for name, loss in (("fusion", ours), ("sft", trl_sft), ("dense", dense)):
        with _Flops() as flops:
            torch.autograd.grad(loss(), (hidden, weight))
        found[f"{name}_gflops"] = flops.total / 1e9
    for name in ("fusion", "sft", "dense"):
        loss = {"fusion": ours, "sft": trl_sft, "dense": dense}[name]
        seconds = []
        for _ in range(3):
            began = _now()
            torch.autograd.grad(loss(), (hidden, weight))
            seconds.append(_now() - began)
        found[f"{name}_seconds"] = float(np.median(seconds))
    return found


def measure_reader(stores: Path, arguments: argparse.Namespace) -> float:
    """Rows that the collator reads and joins per second, in one thread."""
    data = FusionDataset(
        Tokens.read(str(stores / "tokens")), choice="min_ce", max_tokens=arguments.tokens,
        pivot_rows=RowStore.open(str(stores / "pivot"), "logprobs"),
        source_rows=RowStore.open(str(stores / "source"), "aligned"),
    )  # fmt: skip
    collate = FusionCollator(data, [np.array([number]) for number in range(len(data))], pad_token_id=0)
    began, rows = time.perf_counter(), 0
    for _ in range(5):
        for start in range(0, len(data), arguments.batch):
            batch = collate([{"unit": number} for number in range(start, min(start + arguments.batch, len(data)))])
            rows += len(batch[FUSION_KEY]["labels"])
    return rows / (time.perf_counter() - began)


def _now() -> float:
    if DEVICE.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def _peak_bytes() -> int:
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, help="Hugging Face folder; default: random weights in SmolLM2-135M's shape"
    )
    parser.add_argument("--dtype", default="float32", help="of the weights; the products are bfloat16 either way")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--loss-tokens", type=int, default=512, help="tokens of the table of the loss alone")
    parser.add_argument("--peak-of", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--stores", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    model = load_model(arguments.model, arguments.dtype)
    if arguments.peak_of:
        make_trainer(arguments.peak_of, model, arguments.stores, arguments).train()
        print(_peak_bytes())
        return
    with tempfile.TemporaryDirectory() as folder:
        stores = Path(folder)
        make_stores(stores, model, arguments.batch * STEPS, arguments.tokens)
        report(model, stores, arguments)


def report(model: PreTrainedModel, stores: Path, arguments: argparse.Namespace) -> None:
    """Measure everything, print a table to standard error and the JSON object to standard output."""
    seconds = measure_steps(model, stores, arguments)
    peaks = {name: measure_peak(name, stores, arguments) for name in CONTENDERS}
    rows_per_second = measure_reader(stores, arguments)
    rows = round(0.61 * arguments.tokens) * arguments.batch
    hidden_size = model.config.get_text_config().hidden_size
    loss = {v: measure_loss(v, hidden_size, arguments.loss_tokens) for v in (32_000, 49_152, 128_256, 262_144)}
    for vocab_size, found in loss.items():
        values = "  ".join(f"{name} {value:.3f}" for name, value in found.items())
        print(f"loss alone, V={vocab_size}: {values}", file=sys.stderr)
    result = {
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "model": str(arguments.model or "random weights in SmolLM2-135M's shape"),
        "batch": arguments.batch,
        "tokens": arguments.tokens,
        "step_seconds": {name: round(value, 3) for name, value in seconds.items()},
        "peak_gib": {name: round(value / 2**30, 3) for name, value in peaks.items()},
        "step_over_sft": round(seconds["fusion"] / seconds["sft"], 3),
        "peak_over_sft": round(peaks["fusion"] / peaks["sft"], 3),
        "sft_only_over_sft": round(seconds["fusion_off"] / seconds["sft"], 3),
        "step_over_dense": round(seconds["fusion"] / seconds["dense"], 3),
        "peak_over_dense": round(peaks["fusion"] / peaks["dense"], 3),
        "loss_flops_over_sft": round(loss[49_152]["fusion_gflops"] / loss[49_152]["sft_gflops"], 3),
        "loss": {str(v): {name: round(value, 4) for name, value in found.items()} for v, found in loss.items()},
        "reader_rows_per_s": round(rows_per_second),
        "reader_over_step": round(rows_per_second / (rows / seconds["fusion"]), 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
