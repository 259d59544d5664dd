"""Answers through a real engine on Ray: FastChat's and AlpacaEval's files, greedy as transformers says, resumed, sampled again alike."""

import json
from pathlib import Path

import pytest
import torch
from evaluation_runs import finish_earlier_stages
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster import answering
from fusechat.config import RunConfig, load_config
from fusechat.progress import Progress
from fusechat.storage import artifact
from inference.engine.engine_worker import engine_settings

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Say hello.", "Now say it again."]},
    {"question_id": 82, "category": "math", "turns": ["What is 3 + 4?", "And 4 + 5?"], "reference": ["7", "9"]},
]
LONG = "the sky is blue " * 200


@pytest.fixture(scope="module")
def answered(
    tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path], dialogue_files: dict[str, Path]
) -> RunConfig:
    """A run whose pivot and source answered a set of each form."""
    import yaml
    from tiny_runs import tiny_run

    base = tmp_path_factory.mktemp("answered")
    (base / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    (base / "alpaca.json").write_text(json.dumps([{"instruction": "Write add3.", "dataset": "selfinstruct"}]))
    (base / "prompts.txt").write_text(f"What colour is the sky?\n{LONG}\n")
    run = tiny_run(base / "out", tiny_models, dialogue_files)
    short = {"max_new_tokens": 6}
    run["evaluation"] = {
        "models": ["pivot", "source.mixtral"],
        "questions": {"sets": [
            {"name": "mt", "file": str(base / "question.jsonl"), "form": "mt_bench", **short},
            {"name": "alpaca", "file": str(base / "alpaca.json"), "form": "alpaca_eval", **short},
            {"name": "own", "file": str(base / "prompts.txt"), **short},
        ]},
    }  # fmt: skip
    run["cluster"] = {"num_cpus": 2, "engines": 1}
    for model in (run["pivot"], *run["sources"]):
        model["engine"] = {"kv_cache_gib": 0.05}
    (base / "run.yaml").write_text(yaml.safe_dump(run))
    config = load_config(base / "run.yaml")
    finish_earlier_stages(config)
    made = answering.run(config, progress=Progress(quiet=True))
    assert [item.counts["questions"] for item in made] == [2, 1, 2] * 2
    return config


def records(config: RunConfig, name: str, model_id: str) -> list[dict]:
    path = config.answers_path(name, model_id) / f"{model_id}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_two_turn_answers_have_fastchats_form_and_say_how_they_were_sampled(answered: RunConfig) -> None:
    found = records(answered, "mt", "source.mixtral")
    assert [record["question_id"] for record in found] == [81, 82]
    for record in found:
        assert record["model_id"] == "source.mixtral" and len(record["choices"][0]["turns"]) == 2
        assert record["sampling"] == {"max_new_tokens": 6, "temperatures": [0.0, 0.7], "seed": 0}
    made = artifact.load(answered.answers_path("mt", "pivot"), "answers")
    assert made.counts["answers"] == 4
    settings = engine_settings(answered.pivot.engine)
    assert settings["vllm"] != "none" and settings.items() <= made.record["settings"].items()


def test_outputs_have_alpaca_evals_form(answered: RunConfig) -> None:
    found = json.loads((answered.answers_path("alpaca", "pivot") / "pivot.json").read_text())
    assert [{**record, "output": type(record["output"])} for record in found] == [
        {"dataset": "selfinstruct", "instruction": "Write add3.", "output": str, "generator": "pivot"}
    ]


def test_greedy_answers_of_both_turns_are_what_transformers_says(answered: RunConfig) -> None:
    folder = answered.pivot.model
    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    turns = records(answered, "mt", "pivot")[1]["choices"][0]["turns"]
    messages: list[dict[str, str]] = []
    for asked, given in zip(QUESTIONS[1]["turns"], turns, strict=True):
        messages.append({"role": "user", "content": asked})
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        output = network.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, pad_token_id=0)
        expected = tokenizer.decode(output[0][len(prompt) :], skip_special_tokens=True).strip()
        assert given == expected
        messages.append({"role": "assistant", "content": given or "(no answer)"})


def test_question_without_room_is_named_and_the_others_answered(answered: RunConfig) -> None:
    counts = artifact.load(answered.answers_path("own", "pivot"), "answers").counts
    assert counts["no_room"] == ["2"] and counts["answers"] == 1
    assert records(answered, "own", "pivot")[1]["choices"][0]["turns"] == [""]


def test_answers_are_skipped_when_done_and_a_lost_part_is_sampled_to_the_same(answered: RunConfig) -> None:
    path = answered.answers_path("mt", "pivot")
    before = [record["choices"] for record in records(answered, "mt", "pivot")]
    stamp = (path / "artifact.json").stat().st_mtime_ns
    answering.run(answered, progress=Progress(quiet=True))
    assert (path / "artifact.json").stat().st_mtime_ns == stamp
    (path / "artifact.json").unlink()
    for part in (path / "parts").iterdir():
        part.unlink()
    answering.run(answered, progress=Progress(quiet=True))
    assert [record["choices"] for record in records(answered, "mt", "pivot")] == before
