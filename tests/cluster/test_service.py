"""A service of engines that stay: one is started for all tests here, over a tiny model, with both faces.

Ray, Serve and vLLM are real; the last tests kill and change what the first ones asked.
"""

import http.client
import json
import os
import re
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import psutil
import pytest
from served_models import TOKEN, Served, run_of, start_service, wait_until

import fusechat
from cluster import writing
from cluster.service.attach import RunningServices
from fusechat.config import load_config
from fusechat.errors import ClusterSetupError, ContractError, DialogueError, UserError
from fusechat.models.resolved_model import resolve
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.work import run_here
from fusechat.text.model_templates import asked_template
from fusechat.text.prompt_stage import prepare_prompts
from inference import stage
from inference.capture.rows import TopKRows
from inference.serving.wire import BINARY, ScoreRequest, read_reply, write_request
from inference.writing import stage as writing_stage
from inference.writing.stage import Writer

ROWS = [
    {"messages": [{"role": "user", "content": f"{n} + 4?"}, {"role": "assistant", "content": f"It is {n + 4}."}]}
    for n in range(6)
]
PROMPT = {"messages": [{"role": "user", "content": "How many apples are 3 + 4?"}]}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path]) -> Iterator[Served]:
    service = start_service(tmp_path_factory.mktemp("service"), tiny_models["llama"])
    try:
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="module")
def here(tiny_models: dict[str, Path]) -> list[Any]:
    """The same rows by an engine in this process."""
    return fusechat.score(tiny_models["llama"], ROWS, k=5, engine={"kv_cache_gib": 0.05})


def raw(served: Served, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One request as it stands, with the token unless another is given."""
    connection = http.client.HTTPConnection(served.address.removeprefix("http://"), timeout=120)
    names = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    connection.request(method, path, body, names | {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, data


def binary(here: list[Any], **fields: Any) -> tuple[bytes, str]:
    """The rows' dialogues as token ids."""
    ids, marks = tuple(one.token_ids for one in here), tuple(one.is_scored for one in here)
    return write_request(ScoreRequest("llama", token_ids=ids, is_scored=marks, **fields))


def same(found: TopKRows, expected: Any) -> bool:
    names = ("topk_ids", "topk_logprobs", "label_logprob")
    return all(getattr(found, name).tobytes() == getattr(expected, name).tobytes() for name in names)


def test_it_says_what_it_is(served: Served) -> None:
    with served.connection() as connection:
        (model,) = connection.models()
        faces = model["faces"]
        assert model["id"] == "llama" and set(faces) == {"score", "generate"}
        assert faces["score"]["k"] == 5 and faces["score"]["max_tokens"] == 256
        assert faces["score"]["recipe"] != faces["generate"]["recipe"]
    status = served.status()
    assert status["state"] == "ok"
    for engine in status["engines"]:
        (replica,) = engine["replicas"]
        assert replica["state"] == "RUNNING" and psutil.pid_exists(replica["pid"])
    assert all(
        len(status["processes"][name]) == 1 for name in ("keeper", "host", "raylet", "controller", "proxy", "door")
    )
    assert "llama  score" in served.command("--status").stdout
    assert raw(served, "GET", "/health", Authorization="")[0] == 200


def test_rows_are_those_of_an_engine_here(served: Served, here: list[Any]) -> None:
    with fusechat.connect(served.address, token=TOKEN) as service:
        there = service.score("llama", ROWS)
    for found, expected in zip(there, here, strict=True):
        assert (found.token_ids == expected.token_ids).all() and (found.is_scored == expected.is_scored).all()
        assert same(found, expected)
    body, kind = binary(here, alone=True)
    status, headers, data = raw(served, "POST", "/v1/score", body, Content_Type=kind)
    assert (status, headers["content-type"]) == (200, BINARY)
    assert all(map(same, read_reply(data).rows, here))


def test_json_for_a_look(served: Served, here: list[Any]) -> None:
    body = json.dumps({"model": "llama", "k": 2, "dialogues": ROWS[:1]}).encode()
    status, headers, data = raw(served, "POST", "/v1/score", body)
    (dialogue,) = json.loads(data)["dialogues"]
    assert status == 200 and headers["content-type"] == "application/json"
    first = dialogue["rows"][0]
    assert first["topk_ids"] == here[0].topk_ids[0, :2].tolist()
    assert first["label_logprob"] == pytest.approx(here[0].label_logprob[0])
    targets = [row["position"] for row in dialogue["rows"]]
    assert targets == np.flatnonzero(here[0].is_scored).tolist()
    again = {"model": "llama", "dialogues": [{"token_ids": dialogue["token_ids"], "targets": targets}]}
    asked = raw(served, "POST", "/v1/score", json.dumps(again).encode(), Accept=BINARY)
    assert same(read_reply(asked[2]).rows[0], here[0])


def test_chosen_ids(served: Served, here: list[Any]) -> None:
    with fusechat.connect(served.address, token=TOKEN) as service:
        there = service.score("llama", ROWS, chosen_ids=[one.topk_ids[:, ::-1] for one in here])
        with pytest.raises(ContractError, match="chosen_ids are given for 1"):
            service.score("llama", ROWS, chosen_ids=[here[0].topk_ids])
    for found, expected in zip(there, here, strict=True):
        np.testing.assert_allclose(found.chosen_logprobs, expected.topk_logprobs[:, ::-1], atol=1e-5)
        assert found.rest_logprob is not None and (found.rest_logprob < 0).all()


def test_who_may_not_come_in_and_what_is_no_request(served: Served, here: list[Any]) -> None:
    good = json.dumps({"model": "llama", "dialogues": ROWS[:1]}).encode()
    body, kind = binary(here, recipe="0" * 16)
    long = json.dumps({"model": "llama", "dialogues": [{"token_ids": [5] * 300, "targets": [1]}]}).encode()
    wanted = [
        (401, raw(served, "POST", "/v1/score", good, Authorization="Bearer no")),
        (401, raw(served, "GET", "/metrics", Authorization="")),
        (404, raw(served, "GET", "/v1/nothing")),
        (405, raw(served, "GET", "/v1/score")),
        (415, raw(served, "POST", "/v1/score", good, Content_Type="text/plain")),
        (400, raw(served, "POST", "/v1/score", b"{")),
        (400, raw(served, "POST", "/v1/score", b"\xff" * 40, Content_Type=BINARY)),
        (400, raw(served, "POST", "/v1/score", body[:-7], Content_Type=kind)),
        (404, raw(served, "POST", "/v1/score", good.replace(b"llama", b"other"))),
        (400, raw(served, "POST", "/v1/score", good.replace(b"assistant", b"nobody"))),
        (400, raw(served, "POST", "/v1/score", long)),
        (409, raw(served, "POST", "/v1/score", body, Content_Type=kind)),
        (413, raw(served, "POST", "/v1/score", b" " * (64 * 2**20 + 1))),
        (400, raw(served, "POST", "/v1/chat/completions", b'{"model": "llama", "messages": 3}')),
    ]
    for expected, (status, _, data) in wanted:
        assert status == expected, data
        assert json.loads(data)["error"]["message"]
    assert b"256" in wanted[10][1][2] and str(served.folder).encode() not in wanted[10][1][2]
    with fusechat.connect(served.address, token="wrong", patience=0) as service, pytest.raises(UserError, match="401"):
        service.status()


def test_more_than_fits_is_refused_for_now(served: Served, here: list[Any]) -> None:
    body, kind = binary(here, alone=True)
    with ThreadPoolExecutor(40) as threads:
        replies = list(threads.map(lambda _: raw(served, "POST", "/v1/score", body, Content_Type=kind), range(40)))
    refused = [headers for status, headers, _ in replies if status == 429]
    assert refused and all(headers["retry-after"] == "1" for headers in refused)
    assert {status for status, _, _ in replies} == {200, 429}
    for status, _, data in replies:
        assert status == 429 or all(map(same, read_reply(data).rows, here))
    with served.connection() as patient, ThreadPoolExecutor(20) as threads:
        ids, marks = tuple(one.token_ids for one in here), tuple(one.is_scored for one in here)
        asked = ScoreRequest("llama", token_ids=ids, is_scored=marks, alone=True)
        for reply in threads.map(lambda _: patient.score(asked), range(20)):
            assert all(map(same, reply.rows, here))
    assert b'fusechat_requests_total{model="",path="/v1/score",status="429"}' in raw(served, "GET", "/metrics")[2]


def test_openai_client(served: Served, tiny_models: dict[str, Path]) -> None:
    client = openai.OpenAI(base_url=f"{served.address}/v1", api_key=TOKEN)
    assert [model.id for model in client.models.list()] == ["llama"]
    asked: dict[str, Any] = {"model": "llama", "messages": PROMPT["messages"], "max_tokens": 8, "temperature": 0}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    pieces = [part.choices[0].delta.content or "" for part in client.chat.completions.create(**asked, stream=True)]
    assert whole and "".join(pieces) == whole and len(pieces) > 2
    plain = client.completions.create(model="llama", prompt="3 + 4 =", max_tokens=4, temperature=0, logprobs=2)
    assert len(plain.choices[0].logprobs.tokens) == 4
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**asked, "model": "other"})
    with fusechat.connect(served.address, token=TOKEN) as service:
        assert service.generate("llama", [PROMPT], max_new_tokens=8) == [whole]
    assert fusechat.generate(tiny_models["llama"], [PROMPT], max_new_tokens=8, engine={"kv_cache_gib": 0.05}) == [whole]


def test_python_page(served: Served, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What docs/python-api.md says of a service runs as it stands; tests/app/test_python_api.py runs the rest."""
    page = (Path(__file__).parents[2] / "docs/python-api.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (block,) = [block for block in blocks if "ADDRESS" in block]
    monkeypatch.setenv("FUSECHAT_TOKEN", TOKEN)
    values: dict[str, Any] = {
        "fusechat": fusechat,
        "ADDRESS": served.address,
        "MODEL": "llama",
        "rows": ROWS,
        "asked": [PROMPT],
    }
    exec(block, values)
    assert len(values["there"]) == len(ROWS)


def test_harness(
    served: Served, here: list[Any], tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-eval's OpenAI-compatible model sums up the same label logprobs as a row store holds."""
    lm_eval = pytest.importorskip("lm_eval.models.openai_completions")
    monkeypatch.setenv("OPENAI_API_KEY", TOKEN)
    model = lm_eval.LocalCompletionsAPI(
        base_url=f"{served.address}/v1/completions", model="llama", tokenizer=str(tiny_models["llama"]), max_length=256
    )
    one = here[0]
    first, *_, last = np.flatnonzero(one.is_scored).tolist()
    ids = one.token_ids[: last + 1].tolist()
    assert one.is_scored[first : last + 1].all()
    ((found, is_greedy),) = model._loglikelihood_tokens([(("a", "b"), ids[:first], ids[first:])], disable_tqdm=True)
    assert found == pytest.approx(float(one.label_logprob.sum()), abs=1e-3)
    assert not is_greedy


def test_a_run_finds_it(
    served: Served,
    tmp_path: Path,
    tiny_models: dict[str, Path],
    dialogue_files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Both models of the run have the recipe of the one that is served; their stores are those of engines of its own."""
    monkeypatch.setenv("FUSECHAT_STATE", served.environment["FUSECHAT_STATE"])
    monkeypatch.setenv("FUSECHAT_TOKEN", TOKEN)
    run = run_of(
        tmp_path, tiny_models["llama"], dialogues={"train": [str(dialogue_files["train"])], "held_out_share": 0.2},
        extraction={"shard_tokens": 300},
    )  # fmt: skip
    configs = [load_config(run, [f"run.output={tmp_path / name}"]) for name in ("own", "served")]
    for config in configs:
        fusechat.run(config, only="tokenize", quiet=True)
    own, other = configs
    for name in ("llama", "twin"):
        model = resolve(own.model_named(name), own.digests_path)
        run_here(stage.prepare(own.layout, model, own.extraction, own.cluster), Progress(quiet=True))
    capfd.readouterr()
    fusechat.run(other, only="extract")
    said = "".join(capfd.readouterr())
    assert "llama: the service fusechat" in said and "twin: the service fusechat" in said
    for name in ("llama", "twin"):
        ours, theirs = (files_of(Path(config.logprobs_url(name))) for config in configs)
        assert len(ours) > 8 and ours == theirs
    services = RunningServices(other.cluster, progress=Progress())
    assert services.find("score", "llama", lambda: "0" * 16, 10) is None
    assert "has it under recipe" in capfd.readouterr().err
    recipe = served.connection().models()[0]["faces"]["score"]["recipe"]
    assert services.find("score", "llama", lambda: recipe, 1000) is None
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
    monkeypatch.setenv("FUSECHAT_STATE", served.environment["FUSECHAT_STATE"])
    monkeypatch.setenv("FUSECHAT_TOKEN", TOKEN)
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
    writer = Writer(model, asked_template(model.section, own.pivot, date))
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
    return {name: data for name, data in kept.items() if name not in ("artifact.json", "plan.json", "lease.json")}


def test_clients_that_die(served: Served, here: list[Any]) -> None:
    body, kind = binary(here)
    host, port = served.address.removeprefix("http://").split(":")
    head = (
        f"POST /v1/score HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    for sent in (head, head + body[: len(body) // 2], head + body):
        with socket.create_connection((host, int(port))) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # as a killed process's
            client.sendall(sent)
    talk = {"model": "llama", "messages": PROMPT["messages"], "max_tokens": 200, "stream": True}
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(talk), headers)
    assert connection.getresponse().read(40)
    connection.close()
    assert all(map(same, read_reply(raw(served, "POST", "/v1/score", body, Content_Type=kind)[2]).rows, here))
    wait_until(lambda: b"fusechat_requests_in_flight 1.0" in raw(served, "GET", "/metrics")[2], 30)


@pytest.mark.parametrize("face", ["score", "generate"])
def test_engine_that_is_killed_comes_back(served: Served, here: list[Any], face: str) -> None:
    """Meanwhile requests are answered rightly or refused for now."""

    def replica() -> dict[str, Any]:
        (one,) = [engine for engine in served.connection().status()["engines"] if engine["face"] == face]
        return one["replicas"][0] if one["replicas"] else {"pid": None, "state": "none"}

    before, stop = replica()["pid"], threading.Event()
    body, kind = binary(here, alone=True)
    statuses: set[int] = set()

    def ask() -> None:
        while not stop.is_set():
            status, _, data = raw(served, "POST", "/v1/score", body, Content_Type=kind)
            statuses.add(status)
            assert status != 200 or all(map(same, read_reply(data).rows, here))

    with ThreadPoolExecutor(3) as threads:
        asking = [threads.submit(ask) for _ in range(3)]
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: replica()["pid"] not in (None, before) and replica()["state"] == "RUNNING")
        stop.set()
        for one in asking:
            one.result()
    assert 200 in statuses and statuses <= {200, 429, 503}
    with fusechat.connect(served.address, token=TOKEN) as service:
        assert all(map(same, service.score("llama", ROWS), here))
        assert len(service.generate("llama", [PROMPT], max_new_tokens=4)) == 1


def test_node_that_is_killed_comes_back(served: Served, here: list[Any]) -> None:
    """The local Ray with all that is in it: its keeper starts it anew under the same address."""
    before = served.status()["processes"]
    os.kill(before["raylet"][0], signal.SIGKILL)
    with fusechat.connect(served.address, token=TOKEN, patience=400) as service:
        wait_until(lambda: served.status()["processes"].get("raylet", before["raylet"]) != before["raylet"], 400)
        assert all(map(same, service.score("llama", ROWS), here))
        wait_until(lambda: service.status()["state"] == "ok", 200)
    assert served.status()["processes"]["keeper"] == before["keeper"]


def test_another_recipe_is_another_engine(served: Served, here: list[Any]) -> None:
    run = str(served.folder / "run.yaml")
    before = served.connection().models()[0]["faces"]["score"]["recipe"]
    changed = served.command("-c", run, "--models", "llama", "--set", "extraction.k=3", "--set", "serve.faces=[score]")
    assert changed.returncode == 0, changed.stderr
    assert changed.stdout.strip().endswith(served.address)
    (model,) = served.connection().models()
    assert set(model["faces"]) == {"score"} and model["faces"]["score"]["k"] == 3
    body, kind = binary(here, recipe=before)
    assert raw(served, "POST", "/v1/score", body, Content_Type=kind)[0] == 409
    body, kind = binary(here)
    (rows, *_) = read_reply(raw(served, "POST", "/v1/score", body, Content_Type=kind)[2]).rows
    assert (rows.topk_ids == here[0].topk_ids[:, :3]).all()


def test_stopped_it_is_gone(served: Served) -> None:
    processes = [pid for pids in served.status()["processes"].values() for pid in pids]
    assert served.command("--stop").returncode == 0
    assert json.loads(served.command("--status", "--json").stdout) == []
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in processes), 30)
    again = served.command("--stop")
    assert again.returncode == 2 and "found 0 services" in again.stderr
