"""What is known before a service starts, and where it is written down. No Ray is started."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from served_models import TOKEN, run_of
from tiny_runs import another_process_within

from cluster.service import control, records
from cluster.service.records import Process, ServiceRecord
from cluster.service.spec import make_spec
from fusechat.config import load_config
from fusechat.errors import ClusterSetupError, ConfigError, ServiceError
from fusechat.progress import Progress
from inference.serving import client


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSECHAT_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("FUSECHAT_TOKEN", raising=False)


def test_other_machines_need_a_token(
    tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(run_of(tmp_path, tiny_models["llama"], serve={"host": "0.0.0.0", "faces": ["score"]}))
    with pytest.raises(ConfigError, match="FUSECHAT_TOKEN"):
        make_spec(config, [])
    monkeypatch.setenv("FUSECHAT_TOKEN", "short")
    with pytest.raises(ConfigError, match="at least 16"):
        make_spec(config, [])
    monkeypatch.setenv("FUSECHAT_TOKEN", TOKEN)
    spec = make_spec(config, ["twin"])
    assert [face.id.rpartition("-")[0] for face in spec.faces] == ["twin-score"]
    assert spec.token_digest and TOKEN not in repr(spec)


def test_recipe_changes_with_what_decides_rows(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    def recipes(*overrides: str) -> list[str]:
        config = load_config(run_of(tmp_path, tiny_models["llama"]), ["serve.faces=[score]", *overrides])
        return [face.recipe for face in make_spec(config, []).faces]

    plain = recipes()
    assert plain[0] == plain[1], "the twin has the same weights, template and engine"
    assert recipes("extraction.k=3") != plain
    assert recipes("pivot.engine.dtype=bfloat16")[0] != plain[0] == recipes("pivot.engine.dtype=bfloat16")[1]
    assert recipes("pivot.template_arguments={a: 1}")[0] != plain[0]
    template = tmp_path / "other.jinja"
    template.write_text(
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}", encoding="utf-8"
    )
    assert recipes(f"pivot.template={template}")[0] != plain[0]
    assert recipes("serve.requests_in_flight=9", "dialogues.max_tokens=100") == plain


def test_taken_port_and_unknown_model_are_refused(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = load_config(run_of(tmp_path, tiny_models["llama"], serve={"port": taken.getsockname()[1]}))
        with pytest.raises(ConfigError, match="choose another"):
            make_spec(config, ["llama"])
    with pytest.raises(ConfigError, match="no model is named 'nobody'"):
        make_spec(config, ["nobody"])
    with pytest.raises(ConfigError, match="model_faces: found nobody"):
        load_config(run_of(tmp_path, tiny_models["llama"], serve={"model_faces": {"nobody": ["score"]}}))
    with pytest.raises(ConfigError, match="max_replicas is 1"):
        load_config(run_of(tmp_path, tiny_models["llama"], serve={"replicas": 2, "max_replicas": 1}))


def test_records_are_kept_for_this_user_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    me = Process.of(os.getpid())
    record = ServiceRecord("s", "http://127.0.0.1:1", "127.0.0.1:2", "MY_TOKEN", True, me)
    records.write_record(record)
    assert records.read_record("s") == record and records.all_records() == [record] and record.may_run
    assert records.path_of("s").stat().st_mode & 0o77 == 0
    with pytest.raises(ClusterSetupError, match="set MY_TOKEN"):
        record.token()
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    assert record.token() == TOKEN
    records.path_of("s").write_text("{broken", encoding="utf-8")
    assert records.all_records() == []


def test_process_that_ended_is_not_taken_for_another() -> None:
    with another_process_within("import contextlib\ncontextlib.nullcontext()") as pid:
        process = Process.of(pid)
        assert process.alive and not Process(pid, process.started - 60).alive
    assert not process.alive


def test_service_that_is_gone_is_shown_and_stopped() -> None:
    with another_process_within("import contextlib\ncontextlib.nullcontext()") as pid:
        keeper = Process.of(pid)
    records.write_record(ServiceRecord("s", "http://127.0.0.1:1", "127.0.0.1:2", "MY_TOKEN", False, keeper))
    assert [values["state"] for values in control.status()] == ["gone"]
    control.stop("s", progress=Progress(quiet=True))
    assert control.status() == []
    with pytest.raises(ClusterSetupError, match="no such service"):
        control.stop("s", progress=Progress(quiet=True))


def test_look_at_a_service_that_hangs_ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LOOK_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with client.Connection(address, patience=0) as connection, pytest.raises(ServiceError, match="timed out"):
            connection.models()


def test_client_imports_neither_ray_nor_vllm() -> None:
    code = "import sys, fusechat; fusechat.connect('http://127.0.0.1:1'); print({'ray', 'vllm', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("keeps", [True, False])
def test_log_of_a_replica_outlives_what_vllm_sets_up(keeps: bool) -> None:
    """Serve's controller, when it comes back from a death, starts an engine anew whose replica has lost its log."""
    code = f"""
import logging.handlers
handler = logging.handlers.MemoryHandler(10, target=logging.NullHandler())
logging.getLogger("ray.serve").addHandler(handler)
from cluster.service import replicas
if {keeps}:
    replicas.keep_logs()
import vllm.logger
vllm.logger._configure_vllm_root_logger()
print(handler.target is not None)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(keeps)
