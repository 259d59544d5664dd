"""lm-eval on local data: the obvious number, in the report with its interval; tasks that are not there are refused early."""

import json
import math
from pathlib import Path

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
    task = {
        "task": "local_texts", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "texts.jsonl")}},
        "test_split": "test", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [metric],
    }  # fmt: skip
    (folder / "local_texts.yaml").write_text(yaml.safe_dump(task))
    return folder


def test_task_on_local_data_is_run_and_folded_into_the_report(run_file: Path, tasks: Path) -> None:
    config = load_config(
        run_file,
        [
            "evaluation.lm_eval.tasks=[local_texts]", f"evaluation.lm_eval.folder={tasks}", "evaluation.models=[pivot, fused]",
            "evaluation.held_out.divergence_dialogues=0", "evaluation.questions.samples=[]", "evaluation.exact.kinds=[]",
        ],
    )  # fmt: skip
    finish_earlier_stages(config)
    evaluate(config)
    found = json.loads((config.report_path / "report.json").read_text(encoding="utf-8"))["harness"]
    assert found["figures"] == ["local_texts, bits_per_byte"]
    for model_id, folder in (("pivot", config.pivot.model), ("fused", config.fused_path)):
        entry = found["models"][model_id]["local_texts, bits_per_byte"]
        assert entry["value"] == pytest.approx(obvious_bits(Path(folder)), rel=1e-3)
    assert 'id="harness"' in (config.report_path / "index.html").read_text(encoding="utf-8")


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
    run_file: Path, tasks: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "0")
    task = yaml.safe_load((tasks / "local_texts.yaml").read_text())
    (tasks / "local_texts.yaml").write_text(yaml.safe_dump({**task, "unsafe_code": True}))
    network = AutoModelForCausalLM.from_pretrained(tiny_models["llama"])
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["llama"])
    options = {"tasks": ["local_texts"], "folder": tasks, "limit": None, "batch_size": 1, "seed": 0}
    found = run_tasks(network, tokenizer, "{{ messages }}", unsafe_code=True, **options)  # type: ignore[arg-type]
    assert found["local_texts, bits_per_byte"]["value"] > 0
