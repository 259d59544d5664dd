"""A run that finds its engines in a service: it begins at once, and what it writes is what engines of its own would have written.

Plain engines stand for vLLM's on both sides; tests/cluster/test_service_runs.py has real ones. No Ray is started.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from evaluation_runs import finish_rows
from fake_service import fake_service
from plain_engine import PlainEngine, plain_engines
from served_models import run_of
from stages_here import tokenize_run

from cluster import answering
from cluster.service.spec import make_spec
from fusechat.config import RunConfig, load_config
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens_reader import read_tokens

HEAVY = ("ray", "vllm", "torch", "transformers", "tokenizers", "pandas")
PROGRAM = """
import sys
sys.argv = ["fusechat", "extract", *sys.argv[1:]]
from fusechat.app.cli import main
try:
    main()
finally:
    print(sorted({name.partition(".")[0] for name in sys.modules} & set(%r)))
"""


def tokenized(path: Path, *overrides: str) -> RunConfig:
    """A run whose models have read its dialogues."""
    config = load_config(path, list(overrides))
    tokenize_run(config)
    return config


def test_extraction_by_a_service_imports_nothing_heavy(
    tmp_path: Path, tiny_models: dict[str, Path], dialogue_files: dict[str, Path]
) -> None:
    path = run_of(tmp_path, tiny_models["llama"], dialogues={"train": [str(dialogue_files["train"])]})
    config = tokenized(path)
    faces = [one for one in make_spec(config, ["llama"]).faces if one.kind == "score"]
    with fake_service(faces) as (address, _):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM % (HEAVY,), "-c", str(path), "--set", f"cluster.service={address}"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    tokens, store = read_tokens(config.tokens_url("llama")), RowStore.open(config.logprobs_url("llama"), "logprobs")
    place = tokens.tokens_of(0)
    engine = PlainEngine(str(tiny_models["llama"]), k=5, max_tokens=256)
    (expected,) = engine.score([tokens.token_ids[place]], [tokens.is_scored[place]])
    assert (store.read_dialogue(0)["topk_ids"] == expected.topk_ids).all()


def test_measured_models_are_asked_in_a_service(
    tmp_path: Path, tiny_models: dict[str, Path], dialogue_files: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """Held-out rows, chosen logprobs and answers are the same byte for byte; no engine is opened but the service's."""
    questions = tmp_path / "questions.jsonl"
    rows = [{"question_id": n, "category": "math", "turns": [f"{n} + 4?", "And 4 + 5?"]} for n in range(3)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = run_of(
        tmp_path, tiny_models["llama"],
        dialogues={"train": [str(dialogue_files["train"])], "held_out": [str(dialogue_files["held_out"])]},
        evaluation={
            "models": ["pivot", "source.twin"], "exact": {"kinds": ["arithmetic"], "max_new_tokens": 6},
            "questions": {"sets": [{"name": "mt", "file": str(questions), "form": "mt_bench", "max_new_tokens": 6}]},
        },
    )  # fmt: skip
    own, other = (tokenized(path, f"run.output={tmp_path / name}") for name in ("own", "served"))
    for config in (own, other):
        finish_rows(config)
    with plain_engines() as opened:
        answering.run(own, progress=Progress(quiet=True))
        assert len(opened) == 5, "rows and answers of both, then the teachers' ids"
    with fake_service(make_spec(other, ["llama"]).faces) as (address, engines), plain_engines() as opened:
        section = other.cluster.model_copy(update={"service": address})
        answering.run(other.model_copy(update={"cluster": section}), progress=Progress())
        assert opened == [] and {"/v1/score", "/v1/completions"} == set(engines.asked)
    said = "".join(capfd.readouterr())
    works = [f"{name} {kind}" for name in ("pivot llama", "source twin") for kind in ("held out", "answers")]
    assert all(f"{work}: the service {address}" in said for work in works)
    ours, theirs = files_of(own), files_of(other)
    assert len(ours) > 20 and ours == theirs
    engine = artifact.load(other.held_out_url("pivot"), "logprobs").counts["engine"]
    assert engine == {"device": "cpu", "dtype": "float32", "service": address}


def files_of(config: RunConfig) -> dict[str, bytes]:
    """What measured models left, but for records, which say when, and joined answers, which do too."""
    folders = [Path(config.held_out_url(model)) for model in ("pivot", "source.twin")]
    folders += [
        config.answers_path(name, model) / "parts" for name in ("exact", "mt") for model in ("pivot", "source.twin")
    ]
    folders += [
        Path(config.chosen_url("pivot", split, name)) for split in ("train", "held_out") for name in ("llama", "twin")
    ]
    kept = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    records = ("artifact.json", "plan.json", "engine.json", "lease.json")
    return {
        path.relative_to(config.run.output).as_posix(): path.read_bytes() for path in kept if path.name not in records
    }
