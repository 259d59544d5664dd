"""Measured models at real engines on Ray: their rows on held-out dialogues and their logprobs of a teacher's ids as a plain forward says;
answers in FastChat's and AlpacaEval's files, greedy as transformers says, resumed, sampled again alike."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_cases import TOLERANCE, forward
from evaluation_runs import finish_earlier_stages
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from cluster import answering
from cluster.kept_ray import keep_ray
from fusechat.config import RunConfig, load_config
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.chosen_rows import ChosenRows
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens_reader import read_tokens
from inference.engine.engine_settings import engine_settings

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Say hello.", "Now say it again."]},
    {"question_id": 82, "category": "math", "turns": ["What is 3 + 4?", "And 4 + 5?"], "reference": ["7", "9"]},
]
LONG = "the sky is blue " * 200


@pytest.fixture(scope="module")
def answered(
    tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path], dialogue_files: dict[str, Path]
) -> Iterator[RunConfig]:
    """A run whose pivot and source answered a set of each form, and exact and sample questions.

    The pivot's folder asks for sampling and a penalty: that must not matter.
    """
    import yaml
    from tiny_runs import tiny_run

    base = tmp_path_factory.mktemp("answered")
    (base / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    (base / "alpaca.json").write_text(json.dumps([{"instruction": "Write add3.", "dataset": "selfinstruct"}]))
    (base / "prompts.txt").write_text(f"What colour is the sky?\n{LONG}\n")
    shutil.copytree(tiny_models["llama"], base / "llama")
    own = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "max_new_tokens": 2, "eos_token_id": 3}
    (base / "llama/generation_config.json").write_text(json.dumps(own))
    run = tiny_run(base / "out", {**tiny_models, "llama": base / "llama"}, dialogue_files)
    short = {"max_new_tokens": 6}
    run["evaluation"] = {
        "models": ["pivot", "source.mixtral"],
        "exact": {"kinds": ["arithmetic"], "max_new_tokens": 6},
        "questions": {"samples": ["Say hello."], "sets": [
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
    with keep_ray():
        made = answering.run(config, progress=Progress(quiet=True))
        counts = [item.counts["questions"] for item in made if item.kind == "answers"]
        of_source, of_pivot = [4, 2, 1, 2], [4, 1, 2, 1, 2]
        assert counts == of_source + of_pivot, "the larger first: exact, samples of the pivot alone, and the three sets"
        yield config


@pytest.mark.parametrize("model_id", ["pivot", "source.mixtral"])
def test_held_out_rows_are_what_a_plain_forward_says(answered: RunConfig, model_id: str) -> None:
    model = answered.model_named(model_id.removeprefix("source.") if "." in model_id else "llama")
    tokens = read_tokens(answered.tokens_url(model.name, "held_out"))
    store = RowStore.open(answered.held_out_url(model_id), "logprobs")
    places = [tokens.tokens_of(number) for number in range(tokens.num_dialogues)]
    ids, marks = [tokens.token_ids[place] for place in places], [tokens.is_scored[place] for place in places]
    for number, logprobs in enumerate(forward(Path(model.model), ids, marks)):
        label = logprobs[np.arange(len(logprobs)), ids[number][marks[number]]]
        np.testing.assert_allclose(store.read_dialogue(number)["label_logprob"], label, atol=TOLERANCE)
    counts = artifact.load(answered.held_out_url(model_id), "logprobs").counts
    assert counts["engine"]["dtype"] == "float32" and counts["rows"] == tokens.num_rows
    assert counts["parameters"] == AutoModelForCausalLM.from_pretrained(model.model).num_parameters()


def test_chosen_logprobs_of_a_models_own_rows_are_those_rows(answered: RunConfig) -> None:
    chosen = ChosenRows.read(answered.chosen_url("pivot", "held_out", "llama"))
    store = RowStore.open(answered.held_out_url("pivot"), "logprobs")
    assert len(chosen.dialogues) == store.layout.num_dialogues
    rows = [store.read_dialogue(int(number))["topk_logprobs"] for number in chosen.dialogues]
    np.testing.assert_allclose(chosen.chosen_logprobs, np.concatenate(rows), atol=0.04)  # rows lie on a grid of 1/32
    mass = np.exp(chosen.chosen_logprobs.astype(np.float64)).sum(axis=1) + np.exp(chosen.rest_logprob)
    np.testing.assert_allclose(mass, 1, atol=1e-4)


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
    network.generation_config = GenerationConfig(do_sample=False, max_new_tokens=6, eos_token_id=3, pad_token_id=0)
    turns = records(answered, "mt", "pivot")[1]["choices"][0]["turns"]
    messages: list[dict[str, str]] = []
    for asked, given in zip(QUESTIONS[1]["turns"], turns, strict=True):
        messages.append({"role": "user", "content": asked})
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        output = network.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long))
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
