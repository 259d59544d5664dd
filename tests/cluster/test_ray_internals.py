"""What is used of Ray's private parts is there in the installed release, and ours sends what Ray's own walk would."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from ray._private.runtime_env.packaging import _dir_travel, _get_excludes
from ray.job_submission import JobSubmissionClient

from cluster import ray_internals
from cluster.jobs.working_dir import EXCLUDES, sent_files


def test_overridden_methods_exist_and_every_request_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    class Answer:
        status_code = 200

        def raise_for_status(self) -> None: ...

        def json(self) -> dict[str, str]:
            return {"version": "4", "ray_version": "2.60.0"}

    def request(self: JobSubmissionClient, method: str, endpoint: str, **options: Any) -> Answer:
        asked.append(options)
        return Answer()

    assert list(inspect.signature(JobSubmissionClient._do_request).parameters)[:3] == ["self", "method", "endpoint"]
    assert "timeout" in inspect.getsource(JobSubmissionClient._do_request) or any(
        parameter.kind is parameter.VAR_KEYWORD
        for parameter in inspect.signature(JobSubmissionClient._do_request).parameters.values()
    )
    monkeypatch.setattr(JobSubmissionClient, "_do_request", request)
    assert ray_internals.TimedJobClient("http://127.0.0.1:1", 7.0).ray_version() == "2.60.0"
    assert asked and all(options["timeout"] == 7.0 for options in asked)


def test_counted_files_are_those_that_rays_own_walk_sends(tmp_path: Path) -> None:
    for name in (
        "run.yaml", "a/b.py", "a/data/x", "data/x", "a/x.zarr/c/0", "a/model.bin", "notes.tmp", "a/notes.tmp", "a/keep.tmp",
        "a/deep/only.log", "a/deep/other.txt", ".git/config", "venv/lib/x.py", "name with space", "runs/r/x", "a/runs/x",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / ".gitignore").write_text("*.tmp\n!keep.tmp\n# a comment\n\n/a/deep/*.txt\n")
    (tmp_path / "a" / "deep" / ".rayignore").write_text("*.log\n")
    excludes = [*EXCLUDES, "name with*"]
    sent: set[str] = set()

    def note(path: Path) -> None:
        if path.is_file():
            sent.add(str(path.relative_to(tmp_path)))

    _dir_travel(tmp_path, [_get_excludes(tmp_path, excludes)], note, include_gitignore=True)
    assert set(sent_files(tmp_path, excludes)) == sent
    assert {"run.yaml", "a/b.py", "a/data/x", "a/keep.tmp", "a/runs/x"} <= sent and "a/deep/only.log" not in sent
