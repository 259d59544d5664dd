"""Writing through Ray: sources answer, others score, a judge is asked; what is kept is read as dialogues of its authors."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from judge_endpoint import serving
from stages_here import prepare_dialogues
from writing_runs import SHARES, save_writers, writing_run

from cluster import writing
from cluster.pool.session import ray_session
from fusechat.app import pipeline
from fusechat.config import ClusterSection, RunConfig, load_config
from fusechat.errors import ConfigError, DialogueError
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.files import read_json
from fusechat.text.dialogues import read_dialogues
from fusechat.text.writing_files import VERDICTS_FILE

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    with ray_session(ClusterSection(num_cpus=2)):
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_writers(tmp_path_factory.mktemp("writers"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


def run_of(base: Path, models: dict[str, Path], **section: object) -> RunConfig:
    (base / "run.yaml").write_text(yaml.safe_dump(writing_run(base, models, **section)))
    return load_config(base / "run.yaml")


def verdicts_of(config: RunConfig) -> list[dict]:
    lines = (config.written_path / VERDICTS_FILE).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_other_models_choose_the_answer_and_it_is_read_as_a_dialogue_of_its_author(
    base: Path, models: dict[str, Path]
) -> None:
    config = run_of(base, models, keep="likelihood")
    writing.check(config)
    made = writing.run(config, progress=QUIET)
    assert made.counts["prompts"] == 10 and made.counts["answers"] == 60
    assert made.counts["dialogues"] == 10 and made.counts["prompts_without_answer"] == 0
    for row in verdicts_of(config):
        for answer in row["answers"]:
            [(scorer, logprob)] = answer["logprobs"].items()
            assert scorer != answer["writer"]
            # The scorer gives the word its own share, and the end of the turn for certain.
            text = answer["messages"][0]["content"]
            share = SHARES[scorer].get(text, 0)
            if share:
                import math

                assert logprob == pytest.approx(math.log(share) / len(text), abs=0.02)
            else:
                assert logprob < -1
    kept = [answer for row in verdicts_of(config) for answer in row["answers"] if answer["kept"]]
    # `sure` would say Green least of all; what it says most, `doubtful` never says.
    assert {answer["messages"][0]["content"] for answer in kept} <= {"Green", "Red", "Blue"}
    prepared = prepare_dialogues(config, progress=QUIET)
    train = list(read_dialogues(config.dialogues_path / "train.jsonl"))
    assert prepared.counts["written"] == 10 and prepared.counts["train"] == 9 == len(train)
    assert list(prepared.counts["written_near_held_out"].values()) == ["held_out-1"]
    assert {dialogue.author for dialogue in train} <= {"sure", "doubtful"} and train[0].kind == "colour"
    assert not any("thing 3" in dialogue.messages[0].content for dialogue in train)
    assert prepared.record["parents"] == {"written": made.fingerprint}


def test_finished_writing_is_skipped_and_another_rule_asks_nobody_again(base: Path, models: dict[str, Path]) -> None:
    config = run_of(base, models, keep="likelihood")
    stamps = {path: path.stat().st_mtime_ns for path in (config.run.output / "writing").rglob("artifact.json")}
    assert len(stamps) == 4 + 2 * 2  # prompts, two writers, dialogues; tokens and rows of two scorers
    writing.run(config, progress=QUIET)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    other = run_of(base, models, keep="reference", per_prompt=None).model_copy(
        update={"run": config.run.model_copy(update={"if_changed": "restart"})}
    )
    made = writing.run(other, progress=QUIET)
    assert {row["writer"]: row["kept"] for row in made.counts["table"]}["doubtful"] == 0
    answered = {path for path in stamps if "answers" in path.parts}
    assert all(path.stat().st_mtime_ns == stamps[path] for path in answered)


def test_judge_chooses_and_is_paid_once(base: Path, models: dict[str, Path]) -> None:
    with serving() as endpoint:
        endpoint.reply = lambda body, number: (
            "Good.\nSCORE: 9" if "\nGreen\n" in body["messages"][1]["content"] else "Bad.\nSCORE: 2"
        )
        judge = {"url": endpoint.url, "model": "j", "repeats": 1, "key_variable": None}
        config = run_of(base, models, keep="judge", parameters={"min_score": 5}, judge=judge).model_copy(
            update={"run": run_of(base, models).run.model_copy(update={"if_changed": "restart"})}
        )
        monitored = len(endpoint.bodies)
        made = writing.run(config, progress=QUIET)
        asked = len(endpoint.bodies) - monitored
        kept = [answer for row in verdicts_of(config) for answer in row["answers"] if answer["kept"]]
        assert kept and {answer["messages"][0]["content"] for answer in kept} == {"Green"}
        assert made.counts["prompts_without_answer"] == 10 - len(kept)
        (config.written_path / "artifact.json").unlink()
        writing.run(config, progress=QUIET)
        assert len(endpoint.bodies) - monitored == asked <= 60


@pytest.mark.parametrize(
    ("section", "error", "message"),
    [
        ({"keep": "judge"}, ConfigError, "asks a judge, and there is none"),
        (
            {"keep": "judge", "judge": {"url": "http://127.0.0.1:9/v1", "model": "j"}},
            ConfigError, "127.0.0.1:9/v1 does not answer",
        ),
        ({"keep": "likelihood", "writers": ["sure"], "scorers": ["sure"]}, ConfigError, "no writer judges itself"),
        ({"keep": "nobody"}, ConfigError, "writing.keep: found 'nobody'"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_any_engine(
    tmp_path: Path, models: dict[str, Path], section: dict, error: type[Exception], message: str
) -> None:
    config = run_of(tmp_path, models, **section)
    with pytest.raises(error, match=message):
        pipeline.check(config)
    with pytest.raises(error, match=message):
        pipeline.run(config, progress=QUIET, only="write")
    assert not (tmp_path / "out" / "writing").exists()


def test_reference_rule_without_references_is_refused_before_any_engine(
    tmp_path: Path, models: dict[str, Path]
) -> None:
    config = run_of(tmp_path, models, keep="reference")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "What colour?"}\n')
    with pytest.raises(DialogueError, match="none of the 1 prompts has one"):
        pipeline.check(config)
    (tmp_path / "prompts.jsonl").write_text("")
    with pytest.raises(DialogueError, match=r"prompts.jsonl: found an empty file"):
        pipeline.check(config)
    assert not (tmp_path / "out").exists()


def test_all_refused_ends_the_run_and_keeps_what_was_written(base: Path, models: dict[str, Path]) -> None:
    config = run_of(base, models, keep="reference", parameters={"compare": "number"}).model_copy(
        update={"run": run_of(base, models).run.model_copy(update={"if_changed": "restart"})}
    )
    with pytest.raises(
        DialogueError, match=r"reference: none of the 60 answers is kept \(60 not the reference\)"
    ) as error:
        writing.run(config, progress=QUIET)
    assert error.value.exit_status == 2
    assert artifact.load(config.written_answers_path("sure"), "answers").counts["answers"] == 60 / 2
    assert not read_json(str(config.written_path / "artifact.json"))
