"""`fusechat submit` against a real Ray head with its dashboard on loopback and token authentication on."""

import contextlib
import http.server
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray_head
from projects import make_project
from ray_head import TOKEN, Head

from cluster.jobs import submission
from cluster.jobs.job_names import attempt_prefix
from cluster.jobs.job_server import submit_when_ready
from cluster.jobs.submission import Submission
from fusechat.config import load_config

SECRET = "hf_ThisMustNotBeSeenAnywhere"


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    head = ray_head.start_head()
    yield head
    head.stop()


@pytest.fixture
def project(tmp_path: Path, run_file: Path) -> Path:
    return make_project(tmp_path, run_file)


def fusechat(
    *arguments: str, environment: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fusechat", *arguments]
    environment = environment or ray_head.environment(HF_TOKEN=SECRET)
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, **options)


def submit(project: Path, address: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    where = ("-c", str(project / "run.yaml"), "--working-dir", str(project), "--address", address)
    return fusechat("submit", *where, *arguments, **options)


@pytest.fixture
def client(head: Head, monkeypatch: pytest.MonkeyPatch, project: Path) -> Submission:
    """The same connection in this process; Ray reads the mode once, so the token goes into a header."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    from ray.job_submission import JobSubmissionClient

    made = Submission.__new__(Submission)
    made.config, made.lines = load_config(project / "run.yaml"), []  # type: ignore[attr-defined]
    made.say = made.lines.append  # type: ignore[attr-defined]
    made.client = JobSubmissionClient(head.dashboard, headers={"Authorization": f"Bearer {TOKEN}"})
    made.prefix = attempt_prefix(made.config)
    return made


def test_submitted_stage_runs_and_submitting_it_again_resumes(head: Head, project: Path, client: Submission) -> None:
    first = submit(project, head.dashboard, "--stage", "tokenize")
    assert first.returncode == 0, first.stderr
    assert "tokenize llama: done" in first.stdout and "SUCCEEDED" in first.stderr
    record = Path(client.config.tokens_url("mixtral")) / "artifact.json"
    made = record.stat().st_mtime_ns
    second = submit(project, head.dashboard, "--stage", "tokenize")
    assert second.returncode == 0 and "tokenize llama: done before, skipped" in second.stdout
    assert record.stat().st_mtime_ns == made
    attempts = client.attempts()
    assert [name.removeprefix(client.prefix) for name in attempts] == ["1", "2"]
    again = submit(project, head.dashboard, "--submission-id", f"{client.prefix}1")
    assert again.returncode == 0 and again.stdout == first.stdout
    for job in attempts.values():
        shown = job.model_dump_json()
        assert SECRET not in shown and TOKEN not in shown
        assert job.entrypoint == "python -m fusechat tokenize -c run.yaml --set cluster.address=auto"
        assert job.runtime_env is not None and set(job.runtime_env["env_vars"]) == {"PYTHONUNBUFFERED"}
    assert SECRET not in first.stdout + first.stderr


def test_failed_job_ends_with_its_own_status_and_says_why(head: Head, project: Path) -> None:
    result = submit(project, head.dashboard, "--stage", "extract")  # nothing is tokenized
    assert result.returncode == 2 and "run the stage that makes it first" in result.stdout
    assert "FAILED" in result.stderr and "Traceback" not in result.stdout


def test_running_attempt_is_joined_and_stopped(head: Head, project: Path, client: Submission) -> None:
    submit_when_ready(
        client.client, entrypoint="echo begun; sleep 300", submission_id=f"{client.prefix}1", metadata={"stage": "run"}
    )
    other = submit(project, head.dashboard, "--stage", "extract", "--no-follow")
    one_line(other, "with --stage run, asked for is --stage extract", f"--submission-id {client.prefix}1")
    joined = submit(project, head.dashboard, "--no-follow")
    assert joined.stdout.strip() == f"{client.prefix}1" and "joining it" in joined.stderr
    stopped = submit(project, head.dashboard, "--stop")
    assert stopped.returncode == 0 and "is stopped; the same submit command goes on" in stopped.stderr
    assert str(client.client.get_job_status(f"{client.prefix}1")) == "STOPPED"
    nothing = submit(project, head.dashboard, "--stop")
    assert nothing.returncode == 2 and "no job of this run is running" in nothing.stderr


class Proxy:
    """Loopback TCP in front of the dashboard that can cut all connections."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target, self.open = target, True
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.pairs: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, seconds: float) -> None:
        """Drop everything, and refuse for a while."""
        self.open = False
        for end in self.pairs:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.pairs.clear()
        threading.Timer(seconds, lambda: setattr(self, "open", True)).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                if not self.open:
                    near.close()
                    continue
                far = socket.create_connection(self.target)
                self.pairs += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


def test_lost_connection_is_survived_and_no_line_is_lost_or_repeated(
    head: Head, client: Submission, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submission, "RETRY_SECONDS", 0.3)
    host, port = head.dashboard.removeprefix("http://").split(":")
    proxy = Proxy((host, int(port)))
    job = submit_when_ready(client.client, entrypoint="for i in $(seq 40); do echo line $i of 40; sleep 0.1; done")
    client.client._address = f"http://127.0.0.1:{proxy.port}"
    threading.Timer(2.5, lambda: proxy.cut(1.0)).start()
    assert client.follow(job) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("line ")]
    assert lines == [f"line {i} of 40" for i in range(1, 41)]
    assert any("connection lost" in line for line in client.lines)  # type: ignore[attr-defined]


def test_silent_log_is_opened_afresh_without_repeating(
    head: Head, client: Submission, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submission, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(submission, "RETRY_SECONDS", 0.1)
    job = submit_when_ready(client.client, entrypoint="echo one; sleep 3; echo two")
    assert client.follow(job) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("one") == 1 and lines.count("two") == 1


def test_unknown_submission_id_names_those_that_are_there(head: Head, project: Path) -> None:
    result = submit(project, head.dashboard, "--submission-id", "nobody")
    assert result.returncode == 2 and "no job 'nobody'" in result.stderr and "there are:" in result.stderr


def one_line(result: subprocess.CompletedProcess[str], *said: str) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    for text in said:
        assert text in result.stderr, result.stderr


def test_wrong_or_missing_token_is_one_line(head: Head, project: Path, tmp_path: Path) -> None:
    wrong = submit(project, head.dashboard, environment=ray_head.environment(RAY_AUTH_TOKEN="f" * 64))
    one_line(wrong, "the cluster refused the token", "set RAY_AUTH_TOKEN")
    bare = ray_head.environment(HOME=str(tmp_path))
    del bare["RAY_AUTH_TOKEN"], bare["RAY_AUTH_MODE"]
    one_line(submit(project, head.dashboard, environment=bare), "the cluster refused the token", "set RAY_AUTH_TOKEN")


def test_no_ray_at_the_address_is_one_line(project: Path) -> None:
    one_line(submit(project, f"http://127.0.0.1:{ray_head.free_port()}"), "no Ray dashboard there", "http://HEAD:8265")


def test_cluster_of_another_ray_version_is_one_line(project: Path) -> None:
    class Old(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"version": "4", "ray_version": "2.31.0", "ray_commit": "", "session_name": ""}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Old) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        result = submit(project, f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()
    one_line(result, "the cluster runs Ray 2.31.0, this is Ray 2.", "install ray==2.31.0")


CONNECT = """
import sys, ray, ray._private.utils as utils
from cluster.pool.session import ray_session
from fusechat.config import ClusterSection
from fusechat.errors import UserError
{change}
try:
    with ray_session(ClusterSection(address="{address}")):
        print(ray.cluster_resources()["CPU"])
except UserError as error:
    sys.exit("user: " + str(error))
"""


def connect(head: Head, change: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    code = CONNECT.format(change=change, address=head.address)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=head.environment(**environment), timeout=120
    )


def test_driver_with_another_python_or_ray_or_token_is_refused_in_one_line(head: Head) -> None:
    assert connect(head).stdout.strip() == "2.0"
    python = connect(head, "utils.compute_version_info = lambda: (ray.__version__, '3.12.1')")
    assert re.search(
        r"user: cluster\.address .*cluster and this process differ.*Python: 3\.11.*Python: 3\.12\.1", python.stderr
    )
    other = connect(head, "utils.compute_version_info = lambda: ('2.31.0', '%d.%d.%d' % sys.version_info[:3])")
    assert re.search(r"user: .*differ.*Ray: 2\.6.*Ray: 2\.31\.0", other.stderr)


def test_run_file_outside_of_the_working_directory_is_refused(head: Head, project: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    result = submit(project, head.dashboard, "--working-dir", str(tmp_path / "other"))
    one_line(result, "not in the working directory")


def test_dashboard_listens_on_loopback_only(head: Head) -> None:
    port = int(head.dashboard.rsplit(":", 1)[1])
    listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
    places = {line.split()[1] for line in listening if line.split()[3] == "0A"}
    assert f"0100007F:{port:04X}" in places and f"00000000:{port:04X}" not in places
