"""The whole stage on tiny random models: what it leaves, what it says, what it repeats and what it refuses."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from evaluation_runs import evaluate, finish_earlier_stages, finish_measuring, finish_model
from judge_endpoint import Endpoint, serving
from resealed import seal_again
from safetensors.torch import load_file, save_file
from stages_here import write_report

from evaluation.report import terminal
from fusechat.config import ExactSection, QuestionsSection, RunConfig, RunSection, load_config
from fusechat.config.evaluation import EvaluationSection
from fusechat.errors import ArtifactError, ConfigError, DialogueError, ModelError
from fusechat.storage import artifact
from fusechat.storage.tokens import Tokens
from fusechat.storage.tokens_reader import read_tokens
from fusechat.text.questions import answers_file, read_answers, read_questions, write_answers
from inference.held_out.worker import HeldOutWorker

IDS = ["pivot", "sft", "target.mixtral", "fused", "source.mixtral"]


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving() as server:
        yield server


@pytest.fixture
def ready(run_file: Path) -> Iterator[RunConfig]:
    """A run whose earlier stages are done."""
    config = load_config(run_file)
    finish_earlier_stages(config)
    yield config


def test_killed_measuring_goes_on_with_what_is_missing(ready: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, done = HeldOutWorker.run_unit, list[tuple[str, int]]()

    def fails_at_the_third(worker: HeldOutWorker, unit: int) -> dict:
        done.append((worker.inputs.store_url, unit))
        if len(done) == 3:
            raise KeyboardInterrupt
        return plain(worker, unit)

    monkeypatch.setattr(HeldOutWorker, "run_unit", fails_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        finish_measuring(ready)
    with pytest.raises(ArtifactError, match=r"found nothing finished of .*; run `fusechat answer` first"):
        write_report(ready)
    finish_measuring(ready)
    first, again = set(done[:2]), done[3:]
    assert done[2] in again and not first & set(again) and len({url for url, _ in done}) == len(IDS)
    assert finish_measuring(ready) == []
    write_report(ready)


def test_model_that_changed_is_measured_again_and_others_are_not(ready: RunConfig) -> None:
    evaluate(ready)
    report_before = json.loads((ready.report_path / "report.json").read_text(encoding="utf-8"))
    finish_model(ready.fused_path, "fused", seed=77)
    with pytest.raises(
        ArtifactError, match=r"held_out/fused: was made by another model .* run `fusechat answer` again"
    ):
        write_report(ready)
    with pytest.raises(ArtifactError, match=r"settings\.model: "):
        finish_measuring(ready)
    again = ready.model_copy(update={"run": restarting(ready)})
    assert {Path(line.split(" ", 1)[1]) for line in finish_measuring(again)} == {ready.fused_path}
    with pytest.raises(ArtifactError, match=r"settings\.models\.fused"):
        write_report(ready)
    write_report(again)
    report_after = json.loads((ready.report_path / "report.json").read_text(encoding="utf-8"))
    losses = [
        {model["id"]: model["loss"]["all"]["bits_per_byte"] for model in report["models"]}
        for report in (report_before, report_after)
    ]
    changed = {model_id for model_id in IDS if losses[0][model_id] != losses[1][model_id]}
    assert changed == {"fused"}


def test_another_sample_prompt_measures_nothing_else_anew(ready: RunConfig) -> None:
    first = evaluate(ready)
    evaluation = ready.evaluation.model_copy(update={"questions": QuestionsSection(samples=["Say something else."])})
    other = ready.model_copy(update={"evaluation": evaluation, "run": restarting(ready)})
    opened = finish_measuring(other)
    assert len(opened) == 3 and all(line.startswith("generate ") for line in opened)
    again = write_report(other)
    assert again.counts["bits_per_byte"] == first.counts["bits_per_byte"]
    report = json.loads((ready.report_path / "report.json").read_text(encoding="utf-8"))
    assert set(report["samples"][0]["answers"]) == {"pivot", "sft", "fused"}


def test_model_whose_loss_is_not_a_number_is_named_and_the_others_kept(ready: RunConfig) -> None:
    weights = load_file(ready.fused_path / "model.safetensors")
    weights["model.norm.weight"][:] = torch.nan
    save_file(weights, ready.fused_path / "model.safetensors", metadata={"format": "pt"})
    seal_again(ready.fused_path)
    with pytest.raises(ModelError, match=r"fused: its loss of held-out dialogue number 0 is nan"):
        evaluate(ready)
    assert artifact.load(ready.held_out_url("sft"), "logprobs").counts["rows_without_score"] == 0


def test_evaluation_loads_no_network(ready: RunConfig) -> None:
    finish_measuring(ready)
    (ready.run.output / "run.yaml").write_text(yaml.safe_dump(ready.dump()), encoding="utf-8")
    code = (
        "import sys\nfrom fusechat.config import load_config\nfrom evaluation import stage\nfrom evaluation.inputs import ReportInputs\n"
        f"stage.run(ReportInputs.of(load_config({str(ready.run.output / 'run.yaml')!r})))\n"
        "print({'torch', 'transformers', 'vllm', 'ray'} & set(sys.modules) or 'nothing')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "nothing\n", done.stderr[-2000:]


def test_kind_that_no_held_out_dialogue_has_is_refused_before_any_model_is_read(ready: RunConfig) -> None:
    evaluation = ready.evaluation.model_copy(update={"exact": ExactSection(kinds=["arithmetics"])})
    with pytest.raises(ConfigError, match=r"'arithmetics'.*\['arithmetic', 'chat', 'code'\]"):
        write_report(ready.model_copy(update={"evaluation": evaluation}))


def test_chosen_models_alone_are_measured(ready: RunConfig) -> None:
    evaluation = ready.evaluation.model_copy(update={"models": ["fused", "pivot"]})
    made = evaluate(ready.model_copy(update={"evaluation": evaluation}))
    assert list(made.counts["bits_per_byte"]) == ["pivot", "fused"]


def test_cards_of_models_that_several_runs_share_are_left_alone(ready: RunConfig) -> None:
    card = ready.fused_path / "README.md"
    card.write_text("---\ntags: [fusechat]\n---\n\nText.\n", encoding="utf-8")
    evaluation = ready.evaluation.model_copy(update={"models": ["fused"]})
    config = ready.model_copy(update={"evaluation": evaluation})
    before = card.read_text(encoding="utf-8")
    evaluate(config.with_places({"fused": str(ready.fused_path)}))
    assert card.read_text(encoding="utf-8") == before
    shutil.rmtree(config.report_path)
    write_report(config)
    assert "model-index" in card.read_text(encoding="utf-8")


def test_missing_fused_model_is_named(ready: RunConfig) -> None:
    (ready.fused_path / "artifact.json").unlink()
    with pytest.raises(ArtifactError, match="fused"):
        write_report(ready)


@pytest.mark.parametrize("count", [0, 1])
def test_report_of_hardly_any_held_out_dialogue_invents_nothing(ready: RunConfig, count: int) -> None:
    keep_held_out(ready, count)
    evaluation = ready.evaluation.model_copy(update={"questions": QuestionsSection(samples=["Say hello."])})
    evaluate(ready.model_copy(update={"evaluation": evaluation}))
    found = json.loads((ready.report_path / "report.json").read_text(encoding="utf-8"))
    assert found["held_out"]["dialogues"] == count and found["notes"]
    loss = found["models"][0]["loss"]["all"]
    assert (loss["bits_per_byte"] is None) == (count == 0) and loss["low"] is None
    assert {entry["loss"]["all"]["supports"] for entry in found["differences"]} == {"too few"}
    assert set(found["samples"][0]["answers"]) == {"pivot", "sft", "fused"}
    assert "held-out" in (ready.report_path / "index.html").read_text(encoding="utf-8")
    assert all(part is not None for part in terminal.summary(found))


def test_held_out_dialogues_that_are_training_dialogues_are_refused_by_name_unless_asked_for(
    run_file: Path, dialogue_files: dict[str, Path], tmp_path: Path
) -> None:
    both = tmp_path / "both.jsonl"
    training = dialogue_files["train"].read_text(encoding="utf-8").splitlines(keepends=True)
    shared = [line.replace('"id": "d', '"id": "again-d') for line in training[2:4]]
    both.write_text(dialogue_files["held_out"].read_text(encoding="utf-8") + "".join(shared), encoding="utf-8")
    with pytest.raises(DialogueError, match=r"2 held-out .* 'again-d2' is training dialogue 'd2', 'again-d3' is"):
        finish_earlier_stages(load_config(run_file, [f"dialogues.held_out=[{both}]"]))
    config = load_config(run_file, [f"dialogues.held_out=[{both}]", "dialogues.on_overlap=keep"])
    finish_earlier_stages(config)
    evaluate(config)
    found = json.loads((config.report_path / "report.json").read_text(encoding="utf-8"))
    assert any(
        "2 held-out dialogues are training dialogues too (again-d2, again-d3)" in note for note in found["notes"]
    )


def test_answers_are_judged_and_shown_side_by_side(ready: RunConfig, tmp_path: Path, endpoint: Endpoint) -> None:
    (tmp_path / "asked.txt").write_text("Say hello.\nWhat is 3 + 4?\n")
    endpoint.reply = lambda body, number: "nonsense" if number == 0 else "SCORE: 6"
    judge = {"url": endpoint.url, "model": "examiner", "repeats": 2, "concurrency": 1}
    answers = [{"name": "own", "file": str(tmp_path / "asked.txt"), "max_new_tokens": 4}]
    evaluation = EvaluationSection.model_validate(
        {
            "models": ["sft", "fused"],
            "held_out": {"divergence_dialogues": 0},
            "judge": judge,
            "questions": {"sets": answers},
        }
    )
    config = ready.model_copy(update={"evaluation": evaluation})
    finish_measuring(config)
    questions = read_questions(tmp_path / "asked.txt", "prompts")
    for model_id in ("sft", "fused"):
        path = answers_file(config.answers_path("own", model_id), model_id, "prompts")
        assert len(read_answers(path, "prompts", questions)) == 2
        write_answers(path, model_id, "prompts", questions, [[f"{model_id} says {n}"] for n in range(2)], {})
        seal_again(config.answers_path("own", model_id))
    write_report(config)
    found = json.loads((config.report_path / "report.json").read_text(encoding="utf-8"))
    assert found["judge"]["sets"]["own"]["single"]["sft"]["nonsense"] == 1
    assert found["judge"]["sets"]["own"]["single"]["fused"]["score"] == 6
    assert any("1 of 8 single verdicts on own cannot be read" in note for note in found["notes"])
    shown = found["answer_sets"][0]["shown"]
    assert shown[0]["answers"] == {"sft": ["sft says 0"], "fused": ["fused says 0"]}
    record = config.answers_path("own", "sft") / "artifact.json"
    written = record.read_bytes()
    record.unlink()
    with pytest.raises(ArtifactError, match="answers/own/sft: found nothing finished"):
        write_report(config)
    record.write_bytes(written)
    endpoint.bodies = []
    other = evaluation.model_copy(update={"exact": ExactSection(max_new_tokens=9)})
    evaluate(config.model_copy(update={"evaluation": other, "run": restarting(config)}))
    assert not endpoint.bodies, "verdicts outlive the report"


def restarting(config: RunConfig) -> RunSection:
    return config.run.model_copy(update={"if_changed": "restart"})


def keep_held_out(config: RunConfig, count: int) -> None:
    """Keep the first held-out dialogues only."""
    path = config.dialogues_path / "held_out.jsonl"
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:count]), encoding="utf-8")
    for model in config.models:
        url = config.tokens_url(model.name, "held_out")
        tokens = read_tokens(url)
        end = int(tokens.offsets[count])
        shutil.rmtree(url)
        claim = artifact.claim(url, "tokens", settings={"kept": count}, parents={})
        Tokens.of_contents(
            tokens.token_ids[:end], tokens.is_scored[:end], tokens.span[:end], tokens.offsets[: count + 1],
            tokens.attributes,
        ).write(url)  # fmt: skip
        claim.finish({"dialogues": count, "tokens": end, "rows": int(tokens.is_scored[:end].sum())})


def test_questions_that_move_are_neither_answered_nor_reported_anew(run_file: Path, tmp_path: Path) -> None:
    row = json.dumps({"question_id": 1, "category": "math", "turns": ["3 + 4?"]}) + "\n"
    made = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "asked.jsonl").write_text(row)
        asked = f"[{{name: mt, file: {tmp_path / folder}/asked.jsonl, form: mt_bench, max_new_tokens: 4}}]"
        config = load_config(run_file, [f"evaluation.questions.sets={asked}", "evaluation.models=[pivot]"])
        finish_earlier_stages(config)
        opened = finish_measuring(config)
        made.append((write_report(config).record, bool(opened)))
    assert made[0][0] == made[1][0] and [opened for _, opened in made] == [True, False]
