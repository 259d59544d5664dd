"""The choice on disk, the joint target trained from it, and the merge that has nothing to merge."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trainer_runs
import zarr
from stages_here import merge, train
from trainer_runs import NAMES, make_chosen_run

from fusechat.app.inspection import show_artifact
from fusechat.config import CONTROL, JOINT, RunConfig, load_config
from fusechat.errors import ArtifactError
from fusechat.models.resolved_model import resolve
from fusechat.storage import artifact
from fusechat.storage.contracts import RowKind
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens_reader import TokensReader, read_tokens
from fusechat.text.dialogue_set import Kinds, read_kinds
from trainer import choice, choice_stage, stage
from trainer.choice_artifact import Choice
from trainer.choice_table import table_lines
from trainer.fusion_trainer import FusionTrainer
from trainer.inputs import TrainingInputs
from trainer.round_teachers import RoundTeachers
from trainer.run_log import read_metrics


def reference(config: RunConfig) -> list[str | None]:
    """The teacher of each dialogue, token by token."""
    tokens = read_tokens(config.tokens_url("pivot"))
    labels = tokens.token_ids[tokens.is_scored].tolist()
    stores = {name: RowStore.open(config.aligned_url(name), "aligned") for name in NAMES}
    pivot = RowStore.open(config.logprobs_url("pivot"), "logprobs")
    teachers: list[str | None] = []
    for dialogue in range(tokens.num_dialogues):
        own = labels[int(tokens.row_offsets[dialogue]) : int(tokens.row_offsets[dialogue + 1])]
        rare = [-np.log(labels.count(label) / len(labels)) for label in own]
        losses: dict[str | None, float] = {None: min(sum(rare), -pivot.read_dialogue(dialogue)["label_logprob"].sum())}
        for name, store in stores.items():
            rows = store.read_dialogue(dialogue)
            losses[name] = sum(
                -logprob if RowKind(kind).is_real else unknown
                for logprob, kind, unknown in zip(rows["label_logprob"], rows["kind"], rare, strict=True)
            )
        teachers.append(min(losses, key=lambda name: losses[name]))
    return teachers


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run of the joint target, merged."""
    config = make_chosen_run(tmp_path_factory.mktemp("joint"), fusion="joint", trl={"save_steps": 2})
    train(config, JOINT)
    merge(config)
    return config


def test_choice_equals_a_reference_that_reads_token_by_token(joint: RunConfig) -> None:
    made = Choice.read(joint.choice_url)
    teachers = [None if number == choice.NOBODY else made.sources[number] for number in made.source]
    assert teachers == reference(joint)
    assert {"other", "third", None} == set(teachers)
    assert (made.trust[made.source == choice.NOBODY] == 0).all() and (made.trust[made.source >= 0] > 0).all()


def test_choice_table_counts_every_dialogue_and_token_once(joint: RunConfig) -> None:
    record = artifact.load(joint.choice_url, "choice").record
    table, tokens = record["counts"]["table"], read_tokens(joint.tokens_url("pivot"))
    assert sum(line["dialogues"] for line in table) == tokens.num_dialogues
    assert sum(line["tokens"] for line in table) == tokens.num_rows
    assert set(record["parents"]) == {"tokens", "pivot_rows", "rows.other", "rows.third"}
    assert any("nobody (plain SFT) teaches" in line for line in table_lines(table))


@pytest.mark.parametrize("rows_at_once", [1, 40])
def test_choice_does_not_depend_on_how_many_rows_are_looked_at_at_once(
    rows_at_once: int, joint: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice_stage, "ROWS_AT_ONCE", rows_at_once)
    tokens, pivot = TokensReader(joint.tokens_url("pivot")), RowStore.open(joint.logprobs_url("pivot"), "logprobs")
    stores = {name: RowStore.open(joint.aligned_url(name), "aligned") for name in NAMES}
    kinds = read_kinds(joint.dialogues_path / "train.jsonl")
    choice_stage.decide(str(tmp_path), tokens, pivot, stores, kinds)
    made, whole = Choice.read(str(tmp_path)), Choice.read(joint.choice_url)
    for name in ("source", "trust"):
        assert np.array_equal(getattr(made, name), getattr(whole, name)), name


def test_round_is_taught_as_asked_whatever_its_labels_say(joint: RunConfig, tmp_path: Path) -> None:
    tokens = TokensReader(joint.tokens_url("pivot"))
    pivot = RowStore.open(joint.logprobs_url("pivot"), "logprobs")
    stores = {name: RowStore.open(joint.aligned_url(name), "aligned") for name in NAMES}
    number = np.arange(tokens.num_dialogues)
    source = (number % 3 - 1).astype(np.int16)
    asked = RoundTeachers(source, np.where(source < 0, 0, 0.25 + 0.5 * source).astype(np.float32), number > 15)
    kinds = Kinds(np.zeros(len(number), np.int32), [""])
    table = choice_stage.decide(str(tmp_path), tokens, pivot, stores, kinds, asked)
    made = Choice.read(str(tmp_path))
    for name in ("source", "trust", "is_own"):
        assert np.array_equal(getattr(made, name), getattr(asked, name)), name
    assert {line["source"]: line["trust"] for line in table} == {None: None, "other": 0.25, "third": 0.75}
    assert not Choice.read(joint.choice_url).is_own.any()


def test_joint_target_learns_from_all_winners_and_counts_the_dialogues_without_rows(joint: RunConfig) -> None:
    record = artifact.load(joint.target_path(JOINT), "target").record
    made = Choice.read(joint.choice_url)
    assert set(record["parents"]) == {"tokens", "choice", "rows.other", "rows.third"}
    assert record["counts"]["dialogues_without_source"] == 2 * int((made.source == choice.NOBODY).sum())
    card = (joint.target_path(JOINT) / "README.md").read_text()
    assert "`other` and `third` think of their tokens" in card and record["parents"]["choice"] in card


def test_pairs_teach_what_their_own_source_won(tmp_path: Path) -> None:
    config = make_chosen_run(tmp_path)
    for number, name in enumerate(NAMES):
        inputs = TrainingInputs.of(config)
        data = stage.read_data(inputs, resolve(config.pivot, inputs.layout.digests_path), name)
        made = Choice.read(config.choice_url)
        assert data.teachers is not None
        assert np.array_equal(data.teachers.number >= 0, made.source == number)


def test_row_weights_are_trust_times_what_sft_leaves(joint: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    whole = FusionTrainer.compute_loss

    def look(self: FusionTrainer, model: Any, inputs: dict[str, Any], *rest: Any, **keywords: Any) -> Any:
        seen.append(inputs["fusion"])
        return whole(self, model, inputs, *rest, **keywords)

    monkeypatch.setattr(FusionTrainer, "compute_loss", look)
    path = joint.run.output.parent / "run.yaml"
    train(load_config(path).with_places({"targets/joint": f"{joint.run.output}/again"}), JOINT)
    made, rows = Choice.read(joint.choice_url), 0
    for fusion in seen:
        start = 0
        tokens = read_tokens(joint.tokens_url("pivot"))
        for dialogue in fusion["dialogues"].tolist():
            count = int(tokens.row_offsets[dialogue + 1] - tokens.row_offsets[dialogue])
            part = fusion["row_weights"][start : start + count]
            if made.source[dialogue] >= 0:
                assert part.numpy() == pytest.approx(np.full(count, 0.9 * made.trust[dialogue]), rel=1e-6)
                rows += count
            start += count
    assert rows > 0


def test_fused_model_of_a_joint_run_is_the_joint_target_byte_for_byte(joint: RunConfig) -> None:
    target, fused = joint.target_path(JOINT), joint.fused_path
    names = {path.name for path in target.iterdir()} - {"artifact.json", "plan.json", "metrics.jsonl"}
    assert names <= {path.name for path in fused.iterdir()}
    for name in names:
        assert (fused / name).read_bytes() == (target / name).read_bytes()
    record = artifact.load(fused, "fused").record
    assert record["parents"] == {JOINT: artifact.load(target, "target").fingerprint}
    assert merge(joint).fingerprint == record["fingerprint"]


def test_card_of_a_joint_runs_fused_model_is_a_file_of_its_own(joint: RunConfig) -> None:
    """Evaluation writes each model's figures into its card."""
    target, fused = joint.target_path(JOINT), joint.fused_path
    for path in fused.glob("*.safetensors"):
        assert path.samefile(target / path.name)  # no second copy of the weights
    assert not (fused / "README.md").samefile(target / "README.md")


def test_joint_run_that_stopped_goes_on_to_the_same_weights(joint: RunConfig, tmp_path: Path) -> None:
    config = make_chosen_run(tmp_path, fusion="joint", trl={"save_steps": 2})
    with trainer_runs.stopped_at(5):
        train(config, JOINT)
    assert os.listdir(config.target_path(JOINT) / "checkpoints")
    train(config, JOINT)
    assert trainer_runs.losses(config, JOINT) == trainer_runs.losses(joint, JOINT)
    weights = [trainer_runs.weights(run, JOINT) for run in (config, joint)]
    assert all(bool((weights[0][name] == weights[1][name]).all()) for name in weights[1])


def test_control_needs_no_choice(tmp_path: Path) -> None:
    config = make_chosen_run(tmp_path, trl={"max_steps": 1})
    train(config, CONTROL)
    assert not Path(config.choice_url).exists()
    assert read_metrics(config.target_path(CONTROL))[0]["row_share"] == 0


def test_inspect_shows_who_teaches_a_dialogue_and_all_losses(
    joint: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    pivot_loss = zarr.open_group(joint.choice_url, mode="r")["pivot_loss"][:]  # type: ignore[index]
    made = Choice.read(joint.choice_url)
    taught, left = int(np.argmax(made.source >= 0)), int(np.argmax(made.source < 0))
    show_artifact(joint.choice_url, dialogue=taught, num_rows=5, verify=False)
    out = capsys.readouterr().out
    assert f"dialogue {taught}: taught by {made.sources[made.source[taught]]}, trust" in out
    assert f"pivot {pivot_loss[taught]:,.2f}" in out
    show_artifact(joint.choice_url, dialogue=left, num_rows=5, verify=False)
    assert f"dialogue {left}: taught by nobody (plain SFT)" in capsys.readouterr().out


def test_choice_of_rows_made_anew_is_refused(joint: RunConfig, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(joint.run.output, folder)
    path = joint.run.output.parent / "run.yaml"
    config = load_config(path, [f"run.output={folder}"])
    tokens, made = read_tokens(config.tokens_url("pivot")), artifact.load(config.tokens_url("pivot"), "tokens")
    shutil.rmtree(config.aligned_url("third"))
    trainer_runs.write_rows(config.aligned_url("third"), "aligned", tokens, {"tokens": made}, 99)
    with pytest.raises(ArtifactError, match=r"rows\.third"):
        choice_stage.run(config.layout, "pivot", NAMES)
