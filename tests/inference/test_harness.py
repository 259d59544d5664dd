"""lm-eval on local data: the obvious number, in the report with its interval; tasks that are not there are refused early."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from evaluation_runs import evaluate, finish_earlier_stages
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluation.harness_figures import figure
from fusechat.app import pipeline
from fusechat.config import RunConfig, load_config
from fusechat.config.recipe import Recipe
from fusechat.errors import ConfigError
from fusechat.storage.tokens_reader import TokensReader
from fusechat.text.rendered import ChatTemplate
from inference.harness import stage
from inference.harness.tasks import run_tasks
from inference.measuring import MeasuringSettings

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "3 + 4 = 7, so there are 7 apples.",
    "Hello! How are you today?",
]


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a task on local data."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return make_tasks(tmp_path / "tasks")


@pytest.fixture(scope="module")
def tasks_with_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task that runs code, a group and a tag with it; of the module, for the harness reads thousands of files each time."""
    folder = make_tasks(tmp_path_factory.mktemp("code") / "tasks")
    plain = yaml.safe_load((folder / "local_texts.yaml").read_text())
    code = {**plain, "task": "local_code", "unsafe_code": True, "tag": "local_tag"}
    (folder / "local_code.yaml").write_text(yaml.safe_dump(code))
    (folder / "local_group.yaml").write_text(
        yaml.safe_dump({"group": "local_group", "task": ["local_texts", "local_code"]})
    )
    return folder


def make_tasks(folder: Path) -> Path:
    folder.mkdir()
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    metric = {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}
    rolling = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [metric],
    }
    write_task(folder, "local_texts", rolling)
    return folder


def write_task(folder: Path, name: str, task: dict[str, object], source: str = "texts") -> None:
    data = {"data_files": {"test": str(folder / f"{source}.jsonl")}}
    whole = {"task": name, "dataset_path": "json", "dataset_kwargs": data, "test_split": "test", **task}
    (folder / f"{name}.yaml").write_text(
        yaml.safe_dump(whole).replace("'!function marks.mark'", "!function marks.mark")
    )


def add_asking_tasks(folder: Path) -> list[str]:
    """Tasks of the other kinds: letters and words to choose from, a text that is most probable or not, a written answer."""
    choices = ["seven", "eight apples", "none of these"]
    questions = [{"question": text, "choices": choices, "answer": number % 3} for number, text in enumerate(TEXTS)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in questions))
    mark = "import zlib\n\ndef mark(doc, results):\n    return {'mark': zlib.crc32(str(results).encode()) % 100003}\n"
    (folder / "marks.py").write_text(mark)
    metrics = [{"metric": "mark", "aggregation": "mean", "higher_is_better": True}]
    marked = {"doc_to_text": "{{question}}", "process_results": "!function marks.mark", "metric_list": metrics}
    accuracy = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    chosen = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "metric_list": accuracy,
    }
    write_task(folder, "local_letters", {**chosen, "doc_to_choice": ["A", "B", "C"]}, "questions")
    write_task(
        folder,
        "local_words",
        {**chosen, "doc_to_choice": "{{choices}}", "num_fewshot": 1, "fewshot_split": "test"},
        "questions",
    )
    said = {"output_type": "loglikelihood", "doc_to_target": "{{choices[answer]}}", "metric_list": [
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}, *accuracy,
    ]}  # fmt: skip
    write_task(folder, "local_said", {**said, "doc_to_text": "{{question}}"}, "questions")
    written = {
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["e"], "max_gen_toks": 12},
    }
    write_task(folder, "local_written", {**marked, **written}, "questions")
    long = {**written, "generation_kwargs": {"until": [], "max_gen_toks": 20, "do_sample": False, "num_beams": 1}}
    write_task(folder, "local_long", {**marked, **long}, "questions")
    return ["local_letters", "local_words", "local_said", "local_written", "local_long"]


def test_tasks_on_local_data_get_the_figures_of_the_harness_s_own_model(run_file: Path, tasks: Path) -> None:
    """Of every kind of request; the first also by the obvious sum."""
    names = ["local_texts", *add_asking_tasks(tasks)]
    config = load_config(
        run_file,
        [
            f"evaluation.lm_eval.tasks={names}", f"evaluation.lm_eval.folder={tasks}", "evaluation.models=[pivot, fused]",
            "evaluation.held_out.divergence_dialogues=0", "evaluation.questions.samples=[]", "evaluation.exact.kinds=[]",
        ],
    )  # fmt: skip
    finish_earlier_stages(config)
    evaluate(config)
    found = json.loads((config.report_path / "report.json").read_text(encoding="utf-8"))["harness"]
    assert {name.partition(",")[0] for name in found["figures"]} == set(names)
    template = ChatTemplate.from_attributes(TokensReader(config.tokens_url(config.pivot.name)).attributes)
    for model_id, folder in (("pivot", Path(config.pivot.model)), ("fused", config.fused_path)):
        entries = found["models"][model_id]
        assert entries["local_texts, bits_per_byte"]["value"] == pytest.approx(obvious_bits(folder), rel=1e-3)
        expected = of_the_harness_s_own_model(folder, template, names, tasks)
        assert expected.keys() == entries.keys() and len(expected) >= len(names)
        for name, one in expected.items():
            assert entries[name]["value"] == pytest.approx(one["value"], rel=1e-4), name
        said = entries["local_said, perplexity"]
        assert said["low"] < said["value"] < said["high"]
    assert 'id="harness"' in (config.report_path / "index.html").read_text(encoding="utf-8")


def of_the_harness_s_own_model(
    folder: Path, template: ChatTemplate, names: list[str], tasks: Path, *, unsafe_code: bool = False
) -> dict[str, Any]:
    """The figures that lm-eval gets of transformers."""
    from lm_eval.models.huggingface import HFLM

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template.text
    tokenizer.pad_token = tokenizer.eos_token
    network = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    model = HFLM(pretrained=network, tokenizer=tokenizer, batch_size=2, chat_template_args=template.keywords)
    return run_tasks(model, tasks=names, folder=tasks, limit=None, seed=0, unsafe_code=unsafe_code)


def obvious_bits(folder: Path) -> float:
    """Bits per byte of the texts, each after the token that begins a text."""
    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    nats = 0.0
    for text in TEXTS:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            logprobs = network(ids).logits[0, :-1].log_softmax(-1)
        nats -= logprobs.gather(1, ids[0, 1:, None]).sum().item()
    return nats / math.log(2) / sum(len(text.encode()) for text in TEXTS)


def test_task_that_the_harness_does_not_have_is_refused_before_any_model_is_read(
    run_file: Path, tasks_with_code: Path
) -> None:
    given = ["evaluation.lm_eval.tasks=[no_such_task]", f"evaluation.lm_eval.folder={tasks_with_code}"]
    config = load_config(run_file, given)
    finish_earlier_stages(config)
    with pytest.raises(ConfigError, match="found 'no_such_task'"):
        pipeline.check(config, only="answer")


def test_harness_figures_are_kept_under_seed_version_and_task_files_without_caches(
    run_file: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["evaluation.lm_eval.tasks=[local_texts]", f"evaluation.lm_eval.folder={tasks}"]
    config = load_config(run_file, given)
    settings = MeasuringSettings(config.evaluation.held_out, config.extraction, config.cluster)

    def recipe(seed: int = 0) -> Recipe:
        return stage.recipe(config.evaluation.lm_eval, config.pivot, settings, seed=seed)

    first = recipe()
    assert first != recipe(seed=1)
    (tasks / "__pycache__").mkdir()
    (tasks / "__pycache__" / "functions.cpython-311.pyc").write_bytes(b"1")
    assert recipe() == first
    (tasks / "functions.py").write_text("x = 1")
    second = recipe()
    assert second != first
    monkeypatch.setattr("inference.harness.tasks.version", lambda: "0.0")
    assert recipe() != second


def test_value_that_is_no_number_is_none_and_error_that_is_none_gives_no_interval() -> None:
    assert figure(float("nan"), 0.1, 100) == {"value": None, "low": None, "high": None}
    assert figure(0.5, None, 100) == {"value": 0.5, "low": None, "high": None}
    assert figure(1.0, 0.0, 100) == {"value": 1.0, "low": None, "high": None}
    assert figure(0.5, 0.1, 100)["low"] == pytest.approx(0.5 - 1.9842 * 0.1, rel=1e-4)


@pytest.mark.parametrize(
    "name", ["humaneval", "humaneval_64_instruct", "mbpp", "local_code", "local_group", "local_tag"]
)
def test_task_that_runs_generated_code_is_refused_at_the_start_unless_it_is_allowed(
    run_file: Path, tasks_with_code: Path, name: str
) -> None:
    overrides = [f"evaluation.lm_eval.tasks=[local_texts, {name}]", f"evaluation.lm_eval.folder={tasks_with_code}"]
    with pytest.raises(ConfigError, match=rf"'{name}' runs code that the models write .*lm_eval\.unsafe_code"):
        check_tasks(load_config(run_file, overrides))
    check_tasks(load_config(run_file, [*overrides, "evaluation.lm_eval.unsafe_code=true"]))
    check_tasks(load_config(run_file, ["evaluation.lm_eval.tasks=[local_texts]", overrides[1]]))


def check_tasks(config: RunConfig) -> None:
    stage.check(config.evaluation.lm_eval)


def test_allowed_task_that_is_marked_unsafe_is_run(
    tasks: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "0")
    task = yaml.safe_load((tasks / "local_texts.yaml").read_text())
    (tasks / "local_texts.yaml").write_text(yaml.safe_dump({**task, "unsafe_code": True}))
    found = of_the_harness_s_own_model(
        tiny_models["llama"], ChatTemplate("{{ messages }}"), ["local_texts"], tasks, unsafe_code=True
    )
    assert found["local_texts, bits_per_byte"]["value"] > 0
