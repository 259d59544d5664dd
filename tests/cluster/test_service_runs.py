"""Runs find a service, and what its engines give is what engines of their own would have given, byte for byte."""

import json
import shutil
from pathlib import Path

import pytest
from served_models import TOKEN, Served, run_of

import fusechat
from cluster import answering, writing
from cluster.service.attach import RunningServices, Sought
from fusechat.config import load_config
from fusechat.errors import ClusterSetupError, DialogueError
from fusechat.models.resolved_model import resolve
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.work import run_here
from fusechat.text.model_templates import asked_template
from fusechat.text.prompt_stage import prepare_prompts
from inference import stage
from inference.scoring_worker import ScoringWorker
from inference.writing import stage as writing_stage
from inference.writing.stage import Writer


def test_a_run_finds_it(
    served: Served,
    tmp_path: Path,
    tiny_models: dict[str, Path],
    dialogue_files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Both models of the run have the recipe of the one that is served; their stores are those of engines of its own."""
    use_service(served, monkeypatch)
    run = run_of(
        tmp_path, tiny_models["llama"], dialogues={"train": [str(dialogue_files["train"])], "held_out_share": 0.2},
        extraction={"shard_tokens": 300}, cluster={"num_cpus": 1},
    )  # fmt: skip
    configs = [load_config(run, [f"run.output={tmp_path / name}"]) for name in ("own", "served")]
    for config in configs:
        fusechat.run(config, only="tokenize", quiet=True)
    own, other = configs
    models = [resolve(own.model_named(name), own.digests_path) for name in ("llama", "twin")]
    works = [work for model in models for work in stage.prepare(own.layout, model, own.extraction, own.cluster)]
    run_here(works, Progress(quiet=True))
    capfd.readouterr()
    fusechat.run(other, only="extract")
    said = "".join(capfd.readouterr())
    assert "llama: the service fusechat" in said and "twin: the service fusechat" in said
    for name in ("llama", "twin"):
        ours, theirs = (files_of(Path(config.logprobs_url(name))) for config in configs)
        assert len(ours) > 8 and ours == theirs
    services, recipe = RunningServices(other.cluster, progress=Progress()), "0" * 16
    assert services.find(Sought(works[0], "score", lambda engine: [recipe])) is None
    assert "has llama under recipe" in capfd.readouterr().err
    (listed,) = served.connection().models()
    recipe = listed["faces"]["score"]["recipe"]
    assert services.find(Sought(works[0], "score", lambda engine: [recipe])) is not None
    monkeypatch.setattr(ScoringWorker, "longest", lambda self: 1000)
    assert services.find(Sought(works[0], "score", lambda engine: [recipe])) is None
    assert "reads 256 tokens" in capfd.readouterr().err
    with pytest.raises(ClusterSetupError, match="expected auto"):
        RunningServices(other.cluster.model_copy(update={"service": "nobody"}), progress=Progress(quiet=True))


def test_writers_are_asked_there(
    served: Served,
    tmp_path: Path,
    tiny_models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Greedy answers are those of an engine of the run's own."""
    use_service(served, monkeypatch)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"id": f"p{n}", "prompt": f"{n} + 4?"}) + "\n" for n in range(3)), encoding="utf-8"
    )
    run = run_of(
        tmp_path, tiny_models["llama"], dialogues={"train": [], "prompts": [str(prompts)], "held_out_share": 0},
        writing={"writers": ["twin"], "samples": 1, "temperature": 0.0, "max_new_tokens": 6},
    )  # fmt: skip
    own, other = (load_config(run, [f"run.output={tmp_path / name}"]) for name in ("own", "served"))
    quiet = Progress(quiet=True)
    prepare_prompts(own.layout, own.dialogues, progress=quiet)
    model = resolve(own.model_named("twin"), own.digests_path)
    date = artifact.load(own.layout.prompts_path, "prompts").counts["date"]
    writer = Writer(model, asked_template(model, resolve(own.pivot, own.digests_path), date))
    run_here(writing_stage.prepare(own.layout, [writer], own.writing, own.cluster, seed=own.run.seed), quiet)
    with pytest.raises(DialogueError):  # no answer of a random model ends in so few tokens, so none is kept
        writing.run(other, progress=Progress())
    assert "twin: the service fusechat" in capfd.readouterr().err
    ours, theirs = (config.layout.written_answers_path("twin") / "parts/0.json" for config in (own, other))
    assert ours.read_bytes() == theirs.read_bytes()
    assert len(json.loads(ours.read_text(encoding="utf-8"))["answers"]) == 3


def files_of(store: Path) -> dict[str, bytes]:
    """The arrays and attributes of a store; its record says when it was made."""
    kept = {
        path.relative_to(store).as_posix(): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()
    }
    return {
        name: data
        for name, data in kept.items()
        if name not in ("artifact.json", "plan.json", "engine.json", "lease.json")
    }


def test_measured_models_are_asked_there(
    served: Served,
    tmp_path: Path,
    tiny_models: dict[str, Path],
    dialogue_files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Held-out rows, chosen logprobs, exact and further answers."""
    questions = tmp_path / "questions.jsonl"
    rows = [{"question_id": n, "category": "math", "turns": [f"{n} + 4?", "And 4 + 5?"]} for n in range(3)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = run_of(
        tmp_path, tiny_models["llama"],
        dialogues={"train": [str(dialogue_files["train"])], "held_out": [str(dialogue_files["held_out"])]},
        extraction={"shard_tokens": 300}, cluster={"num_cpus": 1},
        evaluation={
            "models": ["pivot", "source.twin"], "exact": {"kinds": ["arithmetic"], "max_new_tokens": 6},
            "questions": {"sets": [{"name": "mt", "file": str(questions), "form": "mt_bench", "max_new_tokens": 6}]},
        },
    )  # fmt: skip
    own, other = (load_config(run, [f"run.output={tmp_path / name}"]) for name in ("own", "served"))
    use_service(served, monkeypatch)
    for stage_name in ("tokenize", "extract", "align"):
        fusechat.run(other, only=stage_name, quiet=True)
    shutil.copytree(other.run.output, own.run.output)
    with monkeypatch.context() as patch:
        patch.setattr(answering, "do_served", lambda *_, **__: {})
        patch.setattr(answering.Passes, "do_own", lambda self, works: run_here(works, self._progress))
        answering.run(own, progress=Progress(quiet=True))
    capfd.readouterr()
    made = answering.run(other, progress=Progress())
    said = "".join(capfd.readouterr())
    works = [f"{name} {kind}" for name in ("pivot llama", "source twin") for kind in ("held out", "answers")]
    assert all(f"{work}: the service fusechat" in said for work in works) and "Ray" not in said
    assert len(made) == 2 * (1 + 2) + (1 + 4), (
        "rows and two sets of answers; then the pivot's rows and its teachers' ids"
    )
    folders = [
        [Path(config.held_out_url(model)) for model in ("pivot", "source.twin")]
        + [config.answers_path(name, model) / "parts" for name in ("exact", "mt") for model in ("pivot", "source.twin")]
        + [
            Path(config.chosen_url("pivot", split, name))
            for split in ("train", "held_out")
            for name in ("llama", "twin")
        ]
        for config in (own, other)
    ]
    for ours, theirs in zip(*map(list, folders), strict=True):
        assert files_of(ours) and files_of(ours) == files_of(theirs), ours
    engines = [artifact.load(config.held_out_url("pivot"), "logprobs").counts["engine"] for config in (own, other)]
    assert engines[0]["dtype"] == engines[1]["dtype"] == "float32"
    assert "service" not in engines[0] and engines[1]["service"] == "fusechat"


def use_service(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """As whoever started it."""
    monkeypatch.setenv("FUSECHAT_STATE", served.environment["FUSECHAT_STATE"])
    monkeypatch.setenv("FUSECHAT_TOKEN", TOKEN)
