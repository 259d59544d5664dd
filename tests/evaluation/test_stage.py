"""The whole stage on tiny random models: what it leaves, what it says, what it repeats and what it refuses."""

import json
import math
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
from rich.console import Console
from safetensors.torch import load_file, save_file
from stages_here import write_report
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluation.report import terminal
from fusechat.config import ExactSection, QuestionsSection, RunConfig, RunSection, load_config
from fusechat.config.evaluation import EvaluationSection
from fusechat.errors import ArtifactError, ConfigError, DialogueError, ModelError
from fusechat.storage import artifact
from fusechat.storage.tokens import Tokens
from fusechat.text.dialogues import read_dialogues
from fusechat.text.questions import answers_file, read_answers, read_questions, write_answers
from inference.held_out.worker import HeldOutWorker

IDS = ["pivot", "sft", "target.mixtral", "fused", "source.mixtral"]


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path], dialogue_files: dict[str, Path]
) -> tuple[RunConfig, dict]:
    """A run that was evaluated, and its report."""
    from tiny_runs import tiny_run

    base = tmp_path_factory.mktemp("evaluated")
    (base / "run.yaml").write_text(
        yaml.safe_dump(tiny_run(base / "out", tiny_models, dialogue_files)), encoding="utf-8"
    )
    config = load_config(base / "run.yaml", ["evaluation.questions.samples=['<b>Say</b> hello & bye.']"])
    finish_earlier_stages(config)
    made = evaluate(config)
    assert made.kind == "report" and made.counts["models"] == len(IDS)
    return config, json.loads((config.report_path / "report.json").read_text(encoding="utf-8"))


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


def test_report_has_every_model_kind_and_comparison(finished: tuple[RunConfig, dict]) -> None:
    found = finished[1]
    assert [model["id"] for model in found["models"]] == IDS
    assert set(found["held_out"]["kinds"]) == {"arithmetic", "chat", "code"}
    for model in found["models"]:
        assert set(model["loss"]) == {"all", "arithmetic", "chat", "code"}
        assert model["loss"]["all"]["low"] < model["loss"]["all"]["bits_per_byte"] < model["loss"]["all"]["high"]
    pairs = [(entry["model"], entry["against"]) for entry in found["differences"]]
    assert pairs[:2] == [("fused", "sft"), ("fused", "pivot")] and ("target.mixtral", "sft") in pairs


def test_bits_per_byte_are_the_obvious_ones_under_each_models_own_template(finished: tuple[RunConfig, dict]) -> None:
    config, found = finished
    dialogues = list(read_dialogues(config.dialogues_path / "held_out.jsonl"))
    folders = {"fused": config.fused_path, "source.mixtral": Path(config.sources[0].model)}
    num_bytes = sum(len(m.content.encode()) for d in dialogues for m in d.messages if m.role == "assistant")
    for model in found["models"]:
        if model["id"] in folders:
            nats = sum(obvious_nats(folders[model["id"]], dialogue) for dialogue in dialogues)
            expected = nats / math.log(2) / num_bytes
            assert model["loss"]["all"]["bits_per_byte"] == pytest.approx(expected, rel=1e-4)
            assert model["loss"]["all"]["bytes"] == num_bytes


def obvious_nats(folder: Path, dialogue: object) -> float:
    """Of the assistant's contents and end-of-turn tokens, found by rendering ever longer parts of the dialogue."""
    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    messages = [{"role": m.role, "content": m.content} for m in dialogue.messages]  # type: ignore[attr-defined]

    def ids(count: int, prompt: bool) -> list[int]:
        text = tokenizer.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=prompt)
        # What one of the two templates writes after the end-of-turn token is no target.
        text = text if prompt else text.removesuffix("\n")
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    whole = ids(len(messages), False)
    with torch.no_grad():
        logprobs = network(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
    total = 0.0
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            answer = range(len(ids(number, True)), len(ids(number + 1, False)))
            total -= sum(logprobs[t - 1, whole[t]].item() for t in answer)
    return total


def test_differences_are_of_the_figures_and_paired(finished: tuple[RunConfig, dict]) -> None:
    found = finished[1]
    losses = {model["id"]: model["loss"] for model in found["models"]}
    for entry in found["differences"]:
        for kind, difference in entry["loss"].items():
            expected = losses[entry["model"]][kind]["bits_per_byte"] - losses[entry["against"]][kind]["bits_per_byte"]
            assert difference["difference"] == pytest.approx(expected)
            low, high = difference["low"], difference["high"]
            verdict = "too few" if low is None else "lower" if high < 0 else "higher" if low > 0 else "undecided"
            assert difference["supports"] == verdict


def test_kind_with_too_few_dialogues_has_a_figure_but_no_interval(finished: tuple[RunConfig, dict]) -> None:
    found = finished[1]
    few = [kind for kind, counted in found["held_out"]["kinds"].items() if counted["dialogues"] < 5]
    assert few, "the fixture has such a kind"
    for kind in few:
        entry = found["models"][0]["loss"][kind]
        assert entry["bits_per_byte"] > 0 and entry["low"] is None and entry["high"] is None
        assert any(kind in note for note in found["notes"])


def test_every_question_is_answered_by_every_model_and_samples_by_the_pivots_shape(
    finished: tuple[RunConfig, dict],
) -> None:
    found = finished[1]
    assert len(found["answers"]) == found["held_out"]["kinds"]["arithmetic"]["dialogues"] > 0
    for answer in found["answers"]:
        assert set(answer["answers"]) == set(IDS)
        assert answer["kind"] == "arithmetic" and answer["question"] and answer["reference"]
    assert set(found["samples"][0]["answers"]) == {"pivot", "sft", "fused"}
    for model in found["models"]:
        entry = model["accuracy"]["arithmetic"]
        right = sum(answer["answers"][model["id"]]["exact"] for answer in found["answers"])
        assert (entry["exact"], entry["asked"]) == (right, len(found["answers"]))


def test_summary_shows_models_kinds_verdicts_and_answers(finished: tuple[RunConfig, dict]) -> None:
    console = Console(width=110, record=True, quiet=False, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115
    for part in terminal.summary(finished[1]):
        console.print(part)
    shown = console.export_text()
    for word in ("bits per byte", "pivot llama", "sft", "target mixtral", "fused", "arithmetic exact", "<b>Say</b>"):
        assert word in shown, shown
    assert "fused - SFT-only (sft):" in shown


def test_page_is_one_file_and_shows_what_models_say_as_text(finished: tuple[RunConfig, dict]) -> None:
    page = (finished[0].report_path / "index.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;Say&lt;/b&gt; hello &amp; bye." in page and "<b>Say</b>" not in page
    assert "default-src 'none'" in page
    for section in ("loss", "differences", "exact", "samples", "artifacts", "again"):
        assert f'id="{section}"' in page


def test_run_again_is_skipped_and_other_settings_are_refused(finished: tuple[RunConfig, dict]) -> None:
    config, found = finished
    assert write_report(config).record["finished"]
    assert json.loads((config.report_path / "report.json").read_text(encoding="utf-8")) == found
    shorter = config.evaluation.exact.model_copy(update={"max_new_tokens": 3})
    other = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"exact": shorter})})
    with pytest.raises(ArtifactError, match=r"settings\.exact\.max_new_tokens: 8 -> 3"):
        write_report(other)


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
        tokens = Tokens.read(url)
        end = int(tokens.offsets[count])
        shutil.rmtree(url)
        claim = artifact.claim(url, "tokens", settings={"kept": count}, parents={})
        Tokens.of_contents(
            tokens.token_ids[:end], tokens.is_scored[:end], tokens.span[:end], tokens.offsets[: count + 1],
            tokens.attributes,
        ).write(url)  # fmt: skip
        claim.finish({"dialogues": count, "tokens": end, "rows": int(tokens.is_scored[:end].sum())})
