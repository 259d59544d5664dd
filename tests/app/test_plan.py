"""`fusechat plan`: right for the paper's sources, for every family it counts, and clear where something is missing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from paper_sources import CONFIGS, ON_80_GB, paper_run

from fusechat.app.plan import run as run_plan
from fusechat.app.plan.dialogue_volume import estimated_volume
from fusechat.app.plan.report import (
    SIZE_COLUMNS,
    STAGE_COLUMNS,
    WORK_COLUMNS,
    service_rows,
    size_cells,
    stage_rows,
    work_cells,
)
from fusechat.app.plan.run import make_plan, row_bytes
from fusechat.config import RunConfig, load_config
from fusechat.models.model_sizes import size_of_config

ROOT = Path(__file__).parents[2]


def plan_of(folder: Path, **plan: Any) -> run_plan.RunPlan:
    return make_plan(RunConfig.model_validate(paper_run(folder, **plan)))


def fusechat(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fusechat", *arguments], capture_output=True, text=True)


def test_smallest_parallel_size_is_the_known_one_on_80_gb_and_less_on_larger_cards(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert {teacher.name: teacher.tensor_parallel_size for teacher in plan.teachers} == ON_80_GB
    assert not plan.problems and not any(teacher.note for teacher in plan.teachers)
    values = paper_run(tmp_path, gpu_memory_gib=141)
    for model in [values["pivot"], *values["sources"]]:
        model["engine"]["tensor_parallel_size"] = 1
    wide = make_plan(RunConfig.model_validate(values))
    assert {t.name: t.tensor_parallel_size for t in wide.teachers} == {**dict.fromkeys(ON_80_GB, 1), "qwen": 2}
    assert "qwen: engine.tensor_parallel_size is 1, one engine needs 2" in wide.teachers[-1].note


def test_hours_are_flops_over_the_stated_rate_or_the_measured_one(tmp_path: Path) -> None:
    teacher = plan_of(tmp_path, store_mib_per_second=1e12).teachers[0]
    flops = 95e6 * teacher.size.flops_per_token(500, head_share=0.6)
    assert teacher.gpu_hours == pytest.approx(flops / (989e12 * 0.5) / 3600)
    measured = plan_of(tmp_path, store_mib_per_second=1e12, tokens_per_second={"mixtral": 50_000}).teachers[4]
    assert measured.gpu_hours == pytest.approx(95e6 / 50_000 / 3600 * 2)


def test_stages_add_up_and_the_price_follows_the_gpu_hours(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, price_per_gpu_hour=2.5, gpus=16)
    assert [stage.stage for stage in plan.stages] == [
        "tokenize",
        "extract",
        "align",
        "train",
        "merge",
        "answer",
        "evaluate",
    ]
    assert plan.stages[1].gpu_hours == pytest.approx(sum(teacher.gpu_hours for teacher in plan.teachers))
    assert plan.stages[1].hours == pytest.approx(plan.stages[1].gpu_hours / 16)
    assert f"{plan.gpu_hours * 2.5:,.2f}" in stage_rows(plan)[-1][-1]


def test_rounds_take_what_their_dialogues_take_of_extraction_alignment_and_one_training(tmp_path: Path) -> None:
    values = paper_run(tmp_path)
    values["rounds"] = {"count": 2, "samples": 1, "given_share": 0.5, "max_new_tokens": 1}
    stages = {stage.stage: stage for stage in make_plan(RunConfig.model_validate(values)).stages}
    assert list(stages)[-3:] == ["rounds", "answer", "evaluate"]
    # As many answers as dialogues, and as many given ones beside them; five sources and the control are six trainings.
    of_round = 2 * (stages["extract"].gpu_hours + stages["train"].gpu_hours / 6)
    assert stages["rounds"].gpu_hours == pytest.approx(2 * of_round, rel=0.05)
    assert stages["rounds"].gpu_hours > 2 * of_round  # the student writes, too
    assert "2 rounds of 95,000 answers to 95,000 prompts" in stages["rounds"].basis


@pytest.mark.parametrize(("gpus", "workers", "rounds"), [(8, 8, 6), (8, 2, 2), (32, 8, 2), (48, 8, 1), (4, 8, 12)])
def test_targets_train_side_by_side_as_far_as_the_fleet_has_room(
    tmp_path: Path, gpus: int, workers: int, rounds: int
) -> None:
    values = paper_run(tmp_path, gpus=gpus)
    values["cluster"] = {"training_workers": workers}
    train = make_plan(RunConfig.model_validate(values)).stages[3]
    targets = len(values["sources"]) + 1  # and the control
    assert train.hours == pytest.approx(rounds * train.gpu_hours / targets / workers)


def test_answers_take_the_weights_once_a_step_of_a_chunk(tmp_path: Path) -> None:
    values = paper_run(tmp_path, store_mib_per_second=1e12, decode_gib_per_second=1000)
    (tmp_path / "ask.txt").write_text("".join(f"question {i}\n" for i in range(33)))
    values["evaluation"] = {
        "models": ["pivot", "fused", "source.solar"],
        "questions": {"sets": [{"name": "own", "file": str(tmp_path / "ask.txt"), "max_new_tokens": 100}]},
    }
    plan = make_plan(RunConfig.model_validate(values))
    silent = make_plan(RunConfig.model_validate({**values, "evaluation": {"models": values["evaluation"]["models"]}}))
    assert [stage.stage for stage in plan.stages][-2:] == ["answer", "evaluate"]
    sizes = {teacher.name: teacher.size for teacher in plan.teachers}
    weights = 2 * sizes["openchat"].weight_bytes + sizes["solar"].weight_bytes
    answers = plan.stages[-2].gpu_hours - silent.stages[-2].gpu_hours
    assert answers == pytest.approx(2 * 100 * weights / (1000 * 2**30) / 3600)
    assert plan.stages[-2].bytes - silent.stages[-2].bytes == pytest.approx(3 * 33 * 100 * 4)
    assert plan.stages[-1].gpu_hours == 0, "evaluation loads no model"


def test_measuring_scores_the_held_out_share_with_every_measured_model(tmp_path: Path) -> None:
    values = paper_run(tmp_path, store_mib_per_second=1e12)
    values["evaluation"] = {"models": ["pivot", "source.qwen"]}
    values["dialogues"]["held_out_share"] = 0.1
    plan = make_plan(RunConfig.model_validate(values))
    expected = 0.0
    for teacher in plan.teachers:
        if teacher.name in ("openchat", "qwen"):
            flops = 0.1 * teacher.volume.tokens * teacher.size.flops_per_token(teacher.volume.mean_context)
            expected += flops / (plan.section.tflops * 1e12 * plan.section.prefill_utilisation) / 3600
    assert plan.stages[-2].gpu_hours == pytest.approx(expected)


def test_merge_reads_the_pivot_and_the_sources_targets_and_writes_in_its_own_dtype(tmp_path: Path) -> None:
    parameters = size_of_config(CONFIGS["openchat"]).parameters
    merge = plan_of(tmp_path, store_mib_per_second=1).stages[4]
    assert merge.hours == pytest.approx((2 + 5 * 4 + 2) * parameters / 2**20 / 3600) and merge.bytes == 2 * parameters
    values = paper_run(tmp_path) | {"merge": {"dtype": "float32"}}
    assert make_plan(RunConfig.model_validate(values)).stages[4].bytes == 4 * parameters


def test_store_bytes_follow_k_and_the_measured_row(tmp_path: Path) -> None:
    assert row_bytes(10, 32_000) == pytest.approx(23.3)
    assert row_bytes(20, 32_000) / row_bytes(10, 32_000) == pytest.approx(2, rel=0.03)
    assert plan_of(tmp_path).teachers[0].store_bytes == pytest.approx(95e6 * 0.6 * 23.3)


def test_service_is_sized_by_its_faces_and_replicas(tmp_path: Path) -> None:
    run = paper_run(tmp_path)
    run["serve"] = {"replicas": 2, "max_replicas": 3, "model_faces": {"qwen": ["score", "generate"]}}
    plan = make_plan(RunConfig.model_validate(run))
    faces = {(face.model, face.face): face for face in plan.service}
    assert ("openchat", "generate") not in faces and faces["qwen", "generate"].tensor_parallel_size == 4
    assert (
        faces["qwen", "score"].gpus == 8
        and faces["qwen", "score"].bytes_per_gpu > plan.teachers[-1].size.weight_bytes / 4
    )
    table = service_rows(plan)
    assert table[-1][-1] == str(sum(face.gpus for face in plan.service))
    assert ["qwen", "score", "4"] in [row[:3] for row in table] and "2 to 3" in table[0]


def test_docs_scaling_shows_the_plan_of_the_papers_sources(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    plan = plan_of(tmp_path)
    for columns, rows in (
        (SIZE_COLUMNS, [size_cells(teacher) for teacher in plan.teachers]),
        (WORK_COLUMNS, [work_cells(teacher) for teacher in plan.teachers]),
        (STAGE_COLUMNS, stage_rows(plan)),
    ):
        table = "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows))
        assert table in page, table


def test_estimate_from_bytes_is_near_the_counted_tokens(run_file: Path) -> None:
    estimate = estimated_volume(load_config(run_file))
    assert estimate.dialogues == 14 and 0.2 < estimate.rows / estimate.tokens < 0.9


def test_estimate_of_a_long_file_scales_its_sample(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = estimated_volume(load_config(run_file))
    monkeypatch.setattr("fusechat.app.plan.dialogue_volume.SAMPLE_DIALOGUES", 7)
    sampled = estimated_volume(load_config(run_file))
    assert sampled.tokens == pytest.approx(whole.tokens, rel=0.2)


def test_plan_of_a_run_file_prints_and_counts_what_is_tokenized(run_file: Path) -> None:
    assert "estimated from bytes" in fusechat("plan", "-c", str(run_file)).stdout
    assert fusechat("tokenize", "-c", str(run_file)).returncode == 0
    shown = fusechat("plan", "-c", str(run_file), "--json", "--set", "plan.price_per_gpu_hour=2")
    figures = json.loads(shown.stdout)
    config = load_config(run_file)
    record = json.loads((Path(config.tokens_url("mixtral")) / "artifact.json").read_text())
    mixtral = next(model for model in figures["models"] if model["name"] == "mixtral")
    assert mixtral["volume"]["tokens"] == record["counts"]["tokens"] and mixtral["volume"]["basis"] == "counted"
    assert figures["total"]["price"] == pytest.approx(2 * figures["total"]["gpu_hours"])


def test_plan_too_few_gpus_says_what_is_missing_and_what_would_fit(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(paper_run(tmp_path, gpus=2)))
    result = fusechat("plan", "-c", str(tmp_path / "run.yaml"))
    assert result.returncode == 2 and "mixtral" in result.stdout
    assert "qwen: 144.6 GB of weights do not fit on 2 GPUs of 79.6 GiB" in result.stderr
    assert "4 GPUs of 79.6 GiB (2 more), or 2 of at least" in result.stderr


def test_plan_engine_wider_than_the_fleet_says_what_would_fit(tmp_path: Path) -> None:
    values = paper_run(tmp_path, gpus=4)
    values["pivot"]["engine"]["tensor_parallel_size"] = 8
    (problem,) = make_plan(RunConfig.model_validate(values)).problems
    assert "openchat: engine.tensor_parallel_size is 8, the fleet has 4 GPUs (plan.gpus)" in problem
    assert "tensor_parallel_size 1, or 4 GPUs more" in problem


def test_plan_config_not_at_hand_says_how_to_get_it(run_file: Path) -> None:
    result = fusechat("plan", "-c", str(run_file), "--set", "pivot.model=openchat/openchat_3.5")
    assert result.returncode == 2 and "hf download openchat/openchat_3.5 config.json" in result.stderr
    assert result.stderr.count("\n") == 1


def test_plan_reads_a_config_from_the_hubs_cache(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "hub" / "models--openchat--openchat_3.5"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc" / "config.json").write_text(json.dumps(CONFIGS["openchat"]))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    result = fusechat("plan", "-c", str(run_file), "--set", "pivot.model=openchat/openchat_3.5")
    assert result.returncode == 0 and "7.24 G" in result.stdout


def test_plan_loads_neither_ray_nor_torch(run_file: Path) -> None:
    code = (
        f"import sys\nsys.argv = ['fusechat', 'plan', '-c', {str(run_file)!r}]\nfrom fusechat.app.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "sys.exit(str({'ray', 'torch', 'vllm', 'transformers', 'zarr'} & set(sys.modules) or ''))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode in (0, 1) and result.stderr.strip() == "", result.stderr


def test_prompts_are_planned_as_writing_and_as_the_dialogues_that_become_of_them(
    run_file: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What colour is the sky?\n" * 300)
    asked = ["dialogues.train=[]", f"dialogues.prompts=[{prompts}]", "writing.max_new_tokens=100"]
    one = estimated_volume(load_config(run_file, [*asked, "writing.per_prompt=1"]))
    two = estimated_volume(load_config(run_file, [*asked, "writing.per_prompt=2"]))
    assert (one.dialogues, one.rows) == (300, 30_000) and one.tokens > one.rows and two.tokens == 2 * one.tokens
    plan = make_plan(load_config(run_file, asked))
    assert plan.stages[0].stage == "write" and plan.stages[0].gpu_hours > 0
    assert plan.stages[0].basis.startswith("1,200 answers")  # of four samples
    more = make_plan(load_config(run_file, [*asked, "writing.writers=[llama, mixtral]"]))
    assert more.stages[0].basis.startswith("2,400 answers") and more.stages[0].gpu_hours > plan.stages[0].gpu_hours
