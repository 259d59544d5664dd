"""What `fusechat submit` would send, lose or show, seen before anything is asked of a cluster."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from projects import make_project

from cluster.jobs import submission
from cluster.jobs.job_names import attempt_prefix
from cluster.pool.session import ray_session
from fusechat.config import ClusterSection, load_config
from fusechat.errors import ClusterSetupError, ConfigError

SECRET = "hf_ThisMustNotBeSeenAnywhere"


@pytest.fixture
def project(tmp_path: Path, run_file: Path) -> Path:
    return make_project(tmp_path, run_file)


def test_refused_token_is_found_behind_rays_last_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        try:
            raise RuntimeError("AuthenticationError: token required for this cluster")
        except RuntimeError as reason:
            raise ConnectionError("Failed to connect to Ray cluster at head:6379") from reason

    def stay_away(**_: Any) -> None:
        raise ConnectionError("Nobody. Home.")

    for answer, expected in (
        (refuse, "it refused the token; set RAY_AUTH_MODE=token"),
        (stay_away, "no Ray there: Nobody$"),
    ):
        monkeypatch.setattr("ray.init", answer)
        with pytest.raises(ClusterSetupError, match=f"'auto': {expected}"), ray_session(ClusterSection(address="auto")):
            pass


def test_working_directory_too_large_names_the_folders(project: Path) -> None:
    (project / "extras").mkdir()
    (project / "extras" / "cache.txt").write_bytes(bytes(3 * 2**20))
    config = load_config(project / "run.yaml", ["cluster.working_dir_mib=2"])
    excludes = submission.working_dir.excludes_of(config.cluster, config.layout, project)
    files = submission.working_dir.sent_files(project, excludes)
    assert set(files) == {"run.yaml", "notes.txt", "extras/cache.txt"}
    with pytest.raises(ClusterSetupError, match=r"3\.0 MiB in 3 files, the limit is 2 MiB; largest: extras/ 3\.0 MiB"):
        submission.working_dir.check_working_dir(config, project, files)
    left_out = load_config(project / "run.yaml", ["cluster.working_dir_mib=2", "cluster.working_dir_excludes=[extras]"])
    files = submission.working_dir.sent_files(
        project, submission.working_dir.excludes_of(left_out.cluster, left_out.layout, project)
    )
    submission.working_dir.check_working_dir(left_out, project, files)


def test_what_would_be_lost_or_missing_on_the_cluster_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    check = submission.working_dir.check_working_dir
    files = {"run.yaml": 1}
    with pytest.raises(ClusterSetupError, match=r"run\.output is 'runs/x'.*absolute path"):
        check(load_config("run.yaml", ["run.output=runs/x"]), project, files)
    with pytest.raises(ClusterSetupError, match=r"run\.store is 'rows'.*or a URL"):
        check(load_config("run.yaml", ["run.store=rows"]), project, files)
    with pytest.raises(ClusterSetupError, match=r"data/big\.jsonl: not sent with the working directory"):
        check(load_config("run.yaml", ["dialogues.train=[data/big.jsonl]"]), project, files)
    answers = "evaluation.questions.sets=[{name: mt, file: asked/question.jsonl}]"
    with pytest.raises(ClusterSetupError, match=r"asked/question\.jsonl, asked/tasks: not sent with the"):
        check(load_config("run.yaml", [answers, "evaluation.lm_eval.folder=asked/tasks"]), project, files)
    check(load_config("run.yaml", [answers]), project, {"asked/question.jsonl": 1})


def test_model_folder_is_looked_for_in_the_folder_that_is_sent(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "nets" / "pivot").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_config(project / "run.yaml", ["pivot.model=nets/pivot"])
    with pytest.raises(ClusterSetupError, match=r"nets/pivot: not sent with the working directory"):
        submission.working_dir.check_working_dir(config, project, {"run.yaml": 1})


def test_secret_in_the_run_file_is_refused_and_a_reference_is_not(project: Path) -> None:
    with pytest.raises(ConfigError, match="HF_TOKEN is called like a secret") as refused:
        load_config(project / "run.yaml", [f"cluster.env_vars={{HF_TOKEN: {SECRET}}}"])
    assert SECRET not in str(refused.value)
    load_config(project / "run.yaml", ["cluster.env_vars={HF_TOKEN: '${HF_TOKEN}', VLLM_LOGGING_LEVEL: INFO}"])


def test_digest_of_a_run_is_not_changed_by_plan_or_cluster(project: Path) -> None:
    prefix = attempt_prefix(load_config(project / "run.yaml"))
    assert prefix == attempt_prefix(load_config(project / "run.yaml", ["plan.gpus=4", "cluster.num_cpus=1"]))
    assert prefix != attempt_prefix(load_config(project / "run.yaml", ["extraction.k=3"]))


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ("/shared/exp #2", "exp-2"), ("/shared/a?b", "a-b"), ("/shared/a%2Fb&c", "a-2Fb-c"), ("/shared/\u00fc\u4f60", "run"),
        ("/shared/.hidden", "hidden"), ("/shared/" + "x" * 200, "x" * 60), ("/shared/run_1.b-c", "run_1.b-c"), ("/", "run"),
    ],
)  # fmt: skip
def test_submission_id_holds_letters_that_may_stand_in_a_url(run_file: Path, output: str, name: str) -> None:
    prefix = attempt_prefix(load_config(run_file, [f"run.output={json.dumps(output)}"]))
    assert re.fullmatch(re.escape(name) + "-[0-9a-f]{8}-", prefix)
