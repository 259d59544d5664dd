"""The stage: a run folder in, a target out; resumption and options."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import trainer_runs
from safetensors.torch import load_file
from stages_here import train
from tiny_runs import torch_threads
from trainer_runs import losses, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusechat.config import RunConfig, load_config
from fusechat.errors import ArtifactError, ConfigError
from fusechat.storage import artifact
from trainer import stage
from trainer.collator import FusionCollator
from trainer.fusion_trainer import FusionTrainer
from trainer.run_log import read_metrics

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run whose target is trained in one go; save_steps 2, attention dropout on."""
    folder = tmp_path_factory.mktemp("reference")
    trl = {"save_steps": 2, "num_train_epochs": 3, "model_init_kwargs": {"attention_dropout": 0.1}}
    config = trainer_runs.make_run(folder, trl=trl)
    with torch_threads(2):
        train(config, "other")
    return config


def test_target_opens_with_transformers_under_the_template_it_was_trained_with(reference: RunConfig) -> None:
    folder = reference.target_path("other")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    pivot = AutoModelForCausalLM.from_pretrained(reference.pivot.model)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False).startswith(
        "<|im_start|>user"
    )
    assert (
        model.config.to_dict() == {**pivot.config.to_dict(), "_name_or_path": str(folder)} or model.dtype == pivot.dtype
    )
    assert model(torch.tensor([[5, 6]])).logits.shape == (1, 2, pivot.config.vocab_size)
    assert not torch.equal(model.get_input_embeddings().weight, pivot.get_input_embeddings().weight)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert not (folder / "checkpoints").exists()


def test_target_record_and_card_carry_the_lineage(reference: RunConfig) -> None:
    record = artifact.load(reference.target_path("other"), "target").record
    assert set(record["parents"]) == {"tokens", "pivot_rows", "source_rows"}
    assert record["counts"]["dialogues"] == 22 and record["counts"]["steps"] == 18
    assert record["counts"]["dialogues_without_source"] == 3  # dialogue 3, once an epoch
    card = (reference.target_path("other") / "README.md").read_text()
    for fact in (*record["parents"].values(), *record["settings"]["pivot"].values(), "min_ce", "0.9"):
        assert fact in card


def test_metrics_hold_the_parts_of_the_loss(reference: RunConfig) -> None:
    records = read_metrics(reference.target_path("other"))
    assert [record["step"] for record in records] == list(range(1, 19))
    for record in records:
        share = record["row_share"]
        expected = record["sft_loss"] * (1 - 0.1 * share) + 0.1 * share * record["fusion_loss"]
        if share == 1:  # elsewhere the tokens without a row are not average ones
            assert record["loss"] == pytest.approx(expected, rel=1e-5)
        assert 0 <= record["source_share"] <= 1 and record["row_entropy"] > 0
    assert sum(record["row_share"] == 1 for record in records) >= 9
    assert records[-1]["loss"] < records[0]["loss"]


def test_finished_target_is_not_trained_again(reference: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FusionTrainer, "train", lambda *_, **__: pytest.fail("trained again"))
    assert train(reference, "other").counts["steps"] == 18


def test_target_of_other_settings_is_refused(reference: RunConfig) -> None:
    changed = load_config(reference.run.output.parent / "run.yaml", ["training.sft_weight=0.5"])
    with pytest.raises(ArtifactError, match=r"sft_weight.*0\.9 -> 0\.5"):
        train(changed, "other")


KILLED = """
import os, signal, sys
import torch
from fusechat.config import load_config
from trainer import stage
from trainer.inputs import TrainingInputs
save = torch.save
def die(value, place, *rest, **options):
    if "checkpoint-10" in str(place):
        os.kill(os.getpid(), signal.SIGKILL)
    return save(value, place, *rest, **options)
torch.save = die
stage.run(TrainingInputs.of(load_config(sys.argv[1])), "other")
"""


@pytest.mark.usefixtures("two_threads")
def test_killed_run_ends_with_the_same_weights_bit_for_bit(reference: RunConfig, tmp_path: Path) -> None:
    config = trainer_runs.make_run(tmp_path, trl=dict(reference.training.trl))
    checkpoints = config.target_path("other") / "checkpoints"
    with trainer_runs.stopped_at(5):
        train(config, "other")
    assert [path.name for path in checkpoints.iterdir()] == ["checkpoint-4"]

    # Then really killed, with half a checkpoint written.
    command = [sys.executable, "-c", KILLED, str(tmp_path / "run.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert (checkpoints / "partial" / "checkpoint-10").is_dir()
    assert [path.name for path in checkpoints.glob("checkpoint-*")] == ["checkpoint-8"]

    train(config, "other")
    assert losses(config) == losses(reference)
    left, right = weights(config), weights(reference)
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_batch_may_be_cut_into_any_micro_batches(tmp_path: Path) -> None:
    curves = []
    for name, batch, steps in (("a", 4, 1), ("b", 2, 2), ("c", 1, 4)):
        trl = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "num_train_epochs": 1}
        config = trainer_runs.make_run(tmp_path / name, trl=trl)
        train(config, "other")
        curves.append(losses(config))
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
    assert curves[2] == pytest.approx(curves[0], abs=1e-5)


def test_control_takes_the_same_steps_without_rows(tmp_path: Path) -> None:
    config = trainer_runs.make_run(tmp_path, trl={"num_train_epochs": 1})
    train(config, "other")
    record = train(config, stage.CONTROL).record
    assert set(record["parents"]) == {"tokens"}
    control, target = read_metrics(config.target_path("sft")), read_metrics(config.target_path("other"))
    assert [r["target_tokens"] for r in control] == [r["target_tokens"] for r in target]
    assert control[0]["sft_loss"] == pytest.approx(target[0]["sft_loss"], rel=1e-6)
    assert control[0]["loss"] == pytest.approx(control[0]["sft_loss"], rel=1e-6)
    assert record["counts"]["source_share"] == 0


def test_packing_and_gradient_checkpointing_change_no_loss(tmp_path: Path) -> None:
    """One step over all dialogues: packed, checkpointed or plain, it is the same loss and the same update."""
    trl = {"num_train_epochs": 1, "per_device_train_batch_size": 22, "warmup_steps": 0}
    results = []
    for name, changes in (
        ("plain", {}),
        ("packed", {"packing": True}),
        ("checkpointed", {"gradient_checkpointing": True}),
    ):
        config = trainer_runs.make_run(tmp_path / name, trl={**trl, **changes})
        train(config, "other")
        results.append((losses(config), weights(config)))
    for curve, tensors in results[1:]:
        assert curve == pytest.approx(results[0][0], abs=1e-5)
        assert all(torch.allclose(tensors[name], weight, atol=1e-4) for name, weight in results[0][1].items())


def test_lora_is_merged_into_whole_weights(tmp_path: Path) -> None:
    config = trainer_runs.make_run(
        tmp_path, lora={"r": 4, "alpha": 8}, trl={"num_train_epochs": 4, "learning_rate": 1e-2}
    )
    train(config, "other")
    pivot, target = load_file(Path(config.pivot.model) / "model.safetensors"), weights(config)
    assert target.keys() == pivot.keys()
    moved = {name for name in pivot if not torch.equal(pivot[name], target[name])}
    assert moved and all("proj" in name for name in moved)
    ranks = {torch.linalg.matrix_rank((target[name] - pivot[name]).float(), atol=1e-5).item() for name in moved}
    assert max(ranks) <= 4
    curve = losses(config)
    assert curve[-1] < curve[0]


def test_unknown_target_is_refused(reference: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"nobody.*other.*sft"):
        train(reference, "nobody")


@pytest.mark.parametrize(
    ("save_dtype", "lora", "expected"),
    [
        ("auto", None, "float32"),
        ("auto", {"r": 2}, "float32"),
        ("bfloat16", None, "bfloat16"),
        ("float16", None, "float16"),
    ],
)
def test_target_files_hold_what_was_trained_and_open_in_the_pivots_dtype(
    save_dtype: str, lora: dict | None, expected: str, tmp_path: Path
) -> None:
    trl = {"num_train_epochs": 1, "learning_rate": 1e-6}
    config = trainer_runs.make_run(tmp_path, trl=trl, save_dtype=save_dtype, lora=lora)
    pivot = AutoModelForCausalLM.from_pretrained(config.pivot.model, dtype="bfloat16")
    pivot.save_pretrained(config.pivot.model)
    train(config, "other")
    saved = weights(config)
    assert {tensor.dtype for tensor in saved.values()} == {getattr(torch, expected)}
    assert AutoModelForCausalLM.from_pretrained(config.target_path("other"), dtype="auto").dtype == torch.bfloat16
    name = "model.layers.0.mlp.up_proj.weight"
    moved = (saved[name].float() != pivot.state_dict()[name].float()).float().mean()
    if expected == "float32" and lora is None:
        assert moved > 0.9
    elif expected == "bfloat16":
        assert moved < 0.2  # steps of 1e-6 are below what bfloat16 resolves


def test_next_step_is_read_while_this_one_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = trainer_runs.make_run(tmp_path, trl={"num_train_epochs": 1})
    reads, compute, collate = [threading.Event() for _ in range(6)], FusionTrainer.compute_loss, FusionCollator.__call__
    threads: list[str] = []

    def reading(self: FusionCollator, features: Any) -> Any:
        reads[len(threads)].set()
        threads.append(threading.current_thread().name)
        return collate(self, features)

    def computing(self: FusionTrainer, *arguments: Any, **keywords: Any) -> Any:
        # Holds the step until a later batch than its own is being read: accelerate itself is one ahead, so the second next.
        assert reads[min(self.state.global_step + 2, 5)].wait(60)
        return compute(self, *arguments, **keywords)

    monkeypatch.setattr(FusionCollator, "__call__", reading)
    monkeypatch.setattr(FusionTrainer, "compute_loss", computing)
    train(config, "other")
    assert len(threads) == 6 and all(name.startswith("read-ahead") for name in threads[2:])


def test_reports_to_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trl = {"num_train_epochs": 1, "report_to": "tensorboard"}
    config = trainer_runs.make_run(tmp_path, trl=trl)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
        train(config, "other")
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    for name in ("sft_loss", "fusion_loss", "source_share", "row_entropy"):
        logged = [event.value for event in events.Scalars(f"train/{name}")]
        assert logged == pytest.approx([record[name] for record in read_metrics(config.target_path("other"))])
