"""The report of a run of tiny random models: every figure is the obvious one, and stands in summary and page."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from evaluation_runs import evaluate, finish_earlier_stages
from rich.console import Console
from stages_here import write_report
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluation.report import terminal
from fusechat.config import RunConfig, load_config
from fusechat.errors import ArtifactError
from fusechat.text.dialogues import read_dialogues

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
